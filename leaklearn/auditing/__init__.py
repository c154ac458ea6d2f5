"""How leaky is your own federation? A model and images of yours, or what a loop of yours sent: what could be taken.

    report = ll.audit(model, images, labels)        # what leaks, passively and actively; which defence would help
    report.save("audit.html")
    ll.audit_update(model, before, after, protocol=ll.FedAvg(32, 5, 0.01), shape=(3, 32, 32))

Nothing leaves this machine.
"""

from leaklearn.auditing.found import Audit
from leaklearn.auditing.inputs import image_set
from leaklearn.auditing.run import audit
from leaklearn.auditing.update import UpdateAudit, audit_update

__all__ = ["Audit", "UpdateAudit", "audit", "audit_update", "image_set"]
