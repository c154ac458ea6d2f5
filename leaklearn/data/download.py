"""Downloading a data set by torchvision, with checksums: everything arrives, or nothing is left behind.

A download that is killed leaves its temporary folder; the next one removes it and starts anew.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from leaklearn import torchvision_compat  # noqa: F401  (before torchvision)
from leaklearn.files import remove_abandoned

log = logging.getLogger(__name__)

REACH_S = 10.0
"""Seconds within which a mirror has to answer before the download is tried at all."""

STALL_S = 30.0
"""Seconds without a byte after which a download is given up."""


class TinyImageNet:
    """Stanford's archive of Tiny ImageNet, fetched as torchvision's classes fetch theirs.

    The validation images are put into a folder for each class, so that torchvision's ImageFolder reads both parts.
    """

    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"

    def __init__(self, root: Path, download: bool) -> None:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(self.url, str(root), md5=self.md5, remove_finished=True)
        val = Path(root) / "tiny-imagenet-200" / "val"
        for line in (val / "val_annotations.txt").read_text(encoding="utf-8").splitlines():
            name, wnid, *_ = line.split("\t")
            (val / wnid / "images").mkdir(parents=True, exist_ok=True)
            os.replace(val / "images" / name, val / wnid / "images" / name)
        shutil.rmtree(val / "images")


DOWNLOADABLE = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "tinyimagenet": TinyImageNet}
"""Data sets that can be downloaded, and the class that does it, or its name in torchvision.datasets."""

_TEMPORARY = "download"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def fetch(name: str, root: Path, folder: str) -> None:
    """Put the files of one of `DOWNLOADABLE` into ``folder`` under ``root``; those that are already there stay.

    The download goes to a temporary folder inside ``root``, which has to exist, and is moved when it is complete and
    its checksums agree. ConnectionError: no mirror can be reached, or the download breaks off or has the wrong
    checksum; PermissionError: ``root`` is not writeable; another OSError: it is full.
    """
    import torchvision  # takes a second, and only a download needs it

    source = DOWNLOADABLE[name]
    if isinstance(source, str):
        source = getattr(torchvision.datasets, source)
    mirrors = [source.url] if hasattr(source, "url") else [m + source.resources[0][0] for m in source.mirrors]
    try:
        remove_abandoned(root, _TEMPORARY)
        temporary = Path(tempfile.mkdtemp(prefix=f".{_TEMPORARY}.{os.getpid()}.", dir=root))
    except OSError as error:
        raise PermissionError(f"{root} is not writeable ({error.strerror}), so {name} cannot be put there") from None
    try:
        if not _reachable(mirrors):
            asked = " and ".join(sorted({urllib.parse.urlsplit(mirror).netloc for mirror in mirrors}))
            raise ConnectionError(f"no server that offers {name} can be reached ({asked})")
        log.info("downloading %s to %s", name, root)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_S)  # torchvision sets none
        try:
            source(temporary, download=True)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            failed = f"the download of {name} failed"
            if getattr(error, "errno", None) in _FULL:
                raise OSError(f"{failed}: {error.strerror}: {root}: free some, or name another data folder") from None
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ConnectionError(f"{failed}: {why}") from None
        finally:
            socket.setdefaulttimeout(before)
        _move(temporary / folder, root / folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reachable(urls: list[str]) -> bool:
    """Whether one of the servers answers in time, whatever it says."""
    answered = threading.Event()

    def ask(url: str) -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACH_S).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, http.client.HTTPException):
            return
        answered.set()

    # threads, because neither name resolution nor the walk over a server's addresses keeps to a time limit
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    waiting = REACH_S
    while waiting > 0 and not answered.wait(0.05) and any(thread.is_alive() for thread in threads):
        waiting -= 0.05
    return answered.is_set()


def _move(source: Path, target: Path) -> None:
    """Move what `target` lacks: a folder that it lacks in one step, so that it is never seen, or left, half filled."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    elif source.is_dir():
        for path in sorted(source.iterdir()):
            _move(path, target / path.name)
