"""Local training of many clients as one batched tensor program (``torch.func``).

Where all clients start from the same weights, their first forward pass is one pass over all images; from then on every
client has weights of its own and the layers become batched (grouped) ones. The numbers are those of training one client
after another, to float tolerance. In mixed precision clients do train one after another: large networks, which gain by
it, fill the processor anyway, and batched layers are not computed in bf16 (benchmarks/local_training.py). And so do
clients of a model with random layers, such as dropout, so that each has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from leaklearn.federated.exchange import AnyPayload, Payload
from leaklearn.federated.protocols import FedAvg, Protocol

State = dict[str, Tensor]

# Images that one batched program works on at once. On a CPU larger programs fall out of the cache and get slower
# (benchmarks/local_training.py); a GPU wants to be full.
IMAGES_AT_ONCE = {"cpu": 128, "cuda": 8192}
# Bytes for the clients' weights, gradients and what is between them, four float32 tensors of the model's size each.
WEIGHT_BYTES = {"cpu": 2**30, "cuda": 2**34}
BYTES_PER_WEIGHT = 16
# Of the message by which vmap refuses random layers.
RANDOM = "randomness"
# Layers that compute something else in train mode, but nothing random.
NORM = nn.modules.batchnorm._NormBase


def clients_at_once(payload: Payload, protocol: Protocol) -> int:
    """How many clients to compute in one program, at least one: bounded by images a step and by weights in memory."""
    if _mixed(protocol):
        return 1
    kind = payload.device.type
    weights = sum(value.numel() for value in payload.parameters.values())
    by_images = IMAGES_AT_ONCE.get(kind, IMAGES_AT_ONCE["cpu"]) // protocol.batch_size
    by_weights = WEIGHT_BYTES.get(kind, WEIGHT_BYTES["cpu"]) // (BYTES_PER_WEIGHT * weights)
    return max(1, min(by_images, by_weights))


def local_updates(
    payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int] | None = None
) -> tuple[State, State]:
    """What K clients answer to a payload.

    With theta the payload's weights, FedSGD returns the gradient of the mean cross-entropy at theta over the client's
    batch, and FedAvg theta_T - theta after T steps theta_{t+1} = theta_t - lr * grad L_t(theta_t).

    Images are (K, T, b, C, H, W) float in [0, 1], with T = 1 for FedSGD, and labels (K, T, b); a personal payload is
    that of these clients in their order. What comes back are updates and batch-norm buffers (none in eval mode) by
    name, each (K, ...); nothing of frozen parameters. Random layers draw by each client's seed, where there are
    `seeds`, else by the global random state.
    """
    if _mixed(protocol):
        return _one_by_one(payload, protocol, images, labels, seeds)
    try:
        return _at_once(payload, protocol, images, labels)
    except RuntimeError as error:
        if RANDOM not in str(error):
            raise
        return _one_by_one(payload, protocol, images, labels, seeds)


def _at_once(payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor) -> tuple[State, State]:
    """`local_updates` in one batched program."""
    training, model, sent = protocol.batch_norm == "train", payload.shared.model, payload.shared.fixed
    changing = batch_norm_buffers(model) if training else set()
    fixed = {name: value for name, value in sent.items() if name not in changing}
    buffers = {name: sent[name].expand(len(images), *sent[name].shape).clone() for name in changing}

    def loss(parameters: State, buffers: State, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, fixed, buffers), (images,))
        return F.cross_entropy(logits, labels)

    start, axes = starts(payload)
    first = vmap(grad(loss), in_dims=(axes, 0, 0, 0))
    with in_mode(model, training):
        if not isinstance(protocol, FedAvg):
            updates = first(start, buffers, images[:, 0], labels[:, 0])
        else:
            updates = _local_sgd(first, vmap(grad(loss)), start, buffers, images, labels, protocol.lr)
    return updates, buffers


def starts(payload: AnyPayload) -> tuple[State, dict[str, int | None]]:
    """The weights that local training starts from, and for each whether clients are its first axis (0) or not (None).

    The second is what ``vmap(in_dims=...)`` takes.
    """
    weights = {**payload.shared.trained, **payload.personal}
    return weights, {name: 0 if name in payload.personal else None for name in weights}


def _local_sgd(first, later, start: State, buffers: State, images: Tensor, labels: Tensor, lr: float) -> State:
    """Weight differences after local SGD. `first` takes the weights that were sent, `later` stacked ones."""
    gradients = first(start, buffers, images[:, 0], labels[:, 0])
    # In weights, not in differences: a client subtracts in the precision of its weights, and what rounding does there
    # to a small step is part of what the attacker sees.
    weights = {name: start[name] - lr * gradients.pop(name) for name in list(gradients)}
    for step in range(1, images.shape[1]):
        gradients = later(weights, buffers, images[:, step], labels[:, step])
        for name in weights:
            weights[name].sub_(gradients.pop(name), alpha=lr)
    return {name: weights[name].sub_(start[name]) for name in weights}


def _mixed(protocol: Protocol) -> bool:
    """Whether clients compute in mixed precision."""
    return isinstance(protocol, FedAvg) and protocol.amp != "off"


def _one_by_one(
    payload: AnyPayload, protocol: Protocol, images: Tensor, labels: Tensor, seeds: Sequence[int] | None
) -> tuple[State, State]:
    """`local_updates` of clients that train one after another: in bf16, channels last as convolutions like it, or with
    random numbers of their own."""
    model, training, weights = payload.shared.model, protocol.batch_norm == "train", starts(payload)[0]
    changing, fixed = batch_norm_buffers(model) if training else set(), payload.shared.fixed
    answers = []
    with in_mode(model, training):
        for client, (steps, truths) in enumerate(zip(images, labels, strict=True)):
            start = {name: value[client] if name in payload.personal else value for name, value in weights.items()}
            mine = {name: _channels_last(value.clone()).requires_grad_() for name, value in start.items()}
            buffers = {name: value.clone() for name, value in fixed.items()}
            with seeded(None if seeds is None else seeds[client], images.device):
                for x, y in zip(steps, truths, strict=True):
                    with torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=_mixed(protocol)):
                        logits = functional_call(model, (mine, buffers), (_channels_last(x),))
                        loss = F.cross_entropy(logits, y)
                    gradients = torch.autograd.grad(
                        loss, list(mine.values()), allow_unused=True, materialize_grads=True
                    )
                    if not isinstance(protocol, FedAvg):
                        break
                    with torch.no_grad():
                        for value, gradient in zip(mine.values(), gradients, strict=True):
                            value.sub_(gradient, alpha=protocol.lr)
            if isinstance(protocol, FedAvg):
                answers.append(({n: value.detach() - start[n] for n, value in mine.items()}, buffers))
            else:
                answers.append((dict(zip(mine, gradients, strict=True)), buffers))
    updates = {name: torch.stack([update[name] for update, _ in answers]) for name in weights}
    return updates, {name: torch.stack([buffers[name] for _, buffers in answers]) for name in changing}


def _channels_last(value: Tensor) -> Tensor:
    return value.to(memory_format=torch.channels_last) if value.ndim == 4 else value


def batch_norm_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that a forward pass in train mode changes."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    }


def mixes_batch(model: nn.Module, protocol: Protocol) -> bool:
    """Whether batch norm in train mode makes an image's gradient depend on the rest of its batch."""
    return protocol.batch_norm == "train" and bool(batch_norm_buffers(model))


def is_random(payload: Payload, image: Tensor) -> bool:
    """Whether the model draws random numbers in train mode, as dropout does, for an image (1, C, H, W) in [0, 1]."""
    model, cuda = payload.model, payload.device.type == "cuda"
    state = partial(torch.cuda.get_rng_state, payload.device) if cuda else torch.get_rng_state
    with torch.no_grad(), in_mode(model, training=True), seeded(0, payload.device):
        for norm in model.modules():
            if isinstance(norm, NORM):  # one image has no statistics
                norm.eval()
        before = state()
        functional_call(model, {**payload.parameters, **payload.buffers}, (image.to(payload.device, payload.dtype),))
        return not torch.equal(before, state())


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """The global random state made from a seed, on the CPU and a device; afterwards it is as it was. None: as it is."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool, *, still: bool = False) -> Iterator[None]:
    """The model in train or in eval mode; afterwards each of its modules is as it was.

    `still`: what is random in train mode, such as dropout, is off all the same: only norm layers are in train mode.
    Attention is made of elementary operations: its fused kernels have neither second nor forward-mode derivatives, nor
    a rule for ``vmap``.
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training and not still)
    for module, _ in before:
        if training and still and isinstance(module, NORM):
            module.train()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in before:
            module.training = mode


@contextmanager
def hooked(model: nn.Module, hooks: dict[str, Callable[..., Tensor | None]]) -> Iterator[None]:
    """Forward hooks on the modules that they are named after, see `torch.nn.Module.register_forward_hook`."""
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
