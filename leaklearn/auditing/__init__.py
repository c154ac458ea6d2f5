"""How leaky is your own federation? A model and images of yours, or what a loop of yours sent: what could be taken.

    report = ll.audit(model, images, labels)        # what leaks, passively and actively; which defence would help
    report.save("audit.html")

Nothing leaves this machine.
"""

from leaklearn.auditing.run import Audit, audit

__all__ = ["Audit", "audit"]
