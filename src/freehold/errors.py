"""Every error Freehold raises on purpose: numbered, never renumbered, each with an entry in docs/reference/errors.md.

    FreeholdError
    ├── UsageError            100  the command or call contradicts itself
    ├── UnknownName           101  no algorithm, task, engine, node, ... of that name
    ├── MissingExtra          102  an optional dependency is not installed
    ├── PlanError             110  a plan is malformed
    │   ├── UnknownKey        111  a key that nobody reads
    │   ├── HyperparameterError 112  a hyper-parameter out of its range
    │   ├── PlanVersion       113  a plan of another format version
    │   └── NotAsynchronous   115  asynchronous rounds with what needs the mean of one round
    ├── SpecMismatch          114  a contribution that the plan's spec does not list
    ├── CheckpointError       120  a checkpoint that does not fit what is to be resumed
    ├── CertificateUnfit      130  a certificate or key of one's own that cannot be used
    ├── DataError             200  data that cannot be used
    │   ├── ColumnMissing     201  a column that is not there
    │   ├── BadValue          202  a missing value or text where a number is expected
    │   ├── LabelError        203  labels that the task does not know
    │   ├── SplitOverlap      204  the same example in two splits
    │   ├── TooFewExamples    205  a client below `min_examples`
    │   ├── NotEnoughMemory   206  a table that does not fit
    │   ├── Unreadable        207  a file that is missing or malformed
    │   ├── SchemaError       208  a schema that contradicts itself
    │   └── NoValidation      209  nothing to choose by
    ├── NodeError             300  a node that cannot go on
    │   ├── NotJoined         301  a node without an identity in this federation
    │   ├── PinMismatch       302  a coordinator that is not the one the join token names
    │   ├── Unreachable       303  no answer from the coordinator
    │   ├── VaultError        304  personal state that is damaged or cannot be written
    │   ├── DataUnfit         305  a node's data that does not fit what a plan asks for
    │   ├── TrainerFailed     306  training code that died, stalled or answered nonsense
    │   ├── JoinTokenError    307  a join token that is malformed
    │   ├── Resting           320  a node outside of its hours, or on a metered connection
    │   ├── PolicyError       330  an owner's policy that is malformed
    │   ├── PolicyRefused     331  a plan to which a rule of the owner says no
    │   ├── PlanWaits         332  a plan that no rule covers, until the owner approves it
    │   ├── OwnerDenied       333  a plan that the owner denied
    │   ├── BenefitKept       334  figures on its own benefit that a node keeps
    │   ├── ApprovalError     335  approvals that are damaged or cannot be written
    │   ├── ReleaseRefused    336  what training code made and may not leave
    │   ├── BundleRefused     337  code of a plan that did not arrive, or is not what the plan names
    │   ├── BundleUnguarded   338  code that came with a plan, on a node whose sandbox is not strong enough for it
    │   ├── LedgerError       340  a ledger or budget that cannot be written or read, so nothing leaves
    │   ├── LedgerDamaged     341  a ledger that this node did not write, or not so
    │   ├── BudgetDamaged     342  a privacy budget that was changed, lost or put back
    │   ├── BudgetExceeded    343  a study that would spend more ε than the owner allows
    │   ├── StateInUse        344  a second guard on one state folder
    │   ├── VaultKeyError     345  a vault's key that is missing, open to others, or no key
    │   ├── VaultLocked       346  a key that is not this vault's
    │   ├── VaultPutBack      347  a vault that is not the newest
    │   ├── ControlRefused    348  a control message larger than any is
    │   └── CheckpointRefused 349  a checkpoint of the ledger that does not hold
    ├── CoordinatorError      400  a coordinator that cannot go on
    │   ├── TokenRefused      401  a join token that is used, expired, revoked or for another node
    │   ├── NoCertificate     402  a request that needs a certificate came without one
    │   ├── CertificateRefused  403  a certificate that is expired, of another federation, or of another role
    │   ├── Denied            404  an identity on the deny list
    │   ├── CsrRefused        405  a certificate request that is malformed or reuses a key
    │   ├── UnknownRun        406  a run or round that does not exist, or not for this node
    │   ├── Late              407  a contribution after its round was closed
    │   ├── Conflict          408  a second, different contribution to the same round
    │   ├── StudyRefused      409  a study whose plan or signature is not accepted
    │   ├── StoreError        410  the coordinator's store cannot be used
    │   ├── ServerCodeFailed  411  the algorithm's server code died or answered nonsense
    │   ├── Busy              412  more contributions at once than the coordinator takes in
    │   └── NotAllowed        420  a role that may not do this, or not to what is another's
    ├── WireError             500  a message that is not what it should be
    │   ├── ProtocolVersion   501  the other side speaks another version
    │   ├── PeerGone          502  a local process has ended
    │   ├── BodyRefused       503  bytes that do not have the announced length or digest
    │   ├── TooLarge          504  a body above its limit
    │   ├── TensorsMalformed  505  bytes that are not safetensors, or not those that were announced
    │   ├── EncodingRefused   506  a contribution not compressed as its plan says, or not to be unpacked
    │   └── WeightRefused     507  a contribution that would count with more than the plan allows
    ├── SimulationError       600  a simulation that cannot go on
    │   ├── NotBatchable      601  a module that the vector engine cannot run for many clients at once
    │   ├── Diverged          602  a loss or a contribution that is no longer finite
    │   ├── NotPrivate        603  an algorithm or a module that record-level privacy does not cover
    │   ├── TaskError         604  a module, a loss or a head that do not fit together
    │   ├── HiddenTensor      605  a loss that closes over the tensor of a client
    │   ├── DeviceMissing     606  a device to compute on that is not there
    │   ├── WorkersLost       607  worker processes that are lost again and again
    │   ├── ClusterUnfit      608  a Ray cluster that cannot be used
    │   └── ArenaError        610  personal states on disk that cannot be kept or read
    └── SandboxError          650  a sandbox that cannot be built
        ├── SandboxEscaped    651  an attempt to get out of the sandbox that succeeded
        ├── SandboxMissing    652  a machine that offers no sandbox
        ├── BundleUnfit       653  a bundle of code that is malformed, too large, or not what its digest names
        └── BundleFailed      654  a bundle whose code cannot be imported, or defines another task

Ranges: 100-199 what a user typed or wrote, 200-299 data, 300-399 node, 400-499 coordinator, 500-599 wire,
600-649 simulation, 650-699 sandbox.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar


class FreeholdError(Exception):
    """A failure with a number, a message that says what was found and expected, and a hint that says what to do."""

    code: ClassVar[int] = 1
    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only `hint` would be lost on the way back from a worker process.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[FreeholdError], message: str, hint: str) -> FreeholdError:
    return kind(message, hint=hint)


def by_code(code: int) -> type[FreeholdError] | None:
    """The kind of error that has this number."""
    waiting = [FreeholdError]
    while waiting:
        kind = waiting.pop()
        if kind.code == code:
            return kind
        waiting += kind.__subclasses__()
    return None


def near_miss(name: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for the closest of `known`, or the list of all of them."""
    names = sorted(known)
    by_lower = {k.lower(): k for k in names}  # papers write FedBN
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else f"Known: {', '.join(names)}."


class UsageError(FreeholdError):
    """The command or call contradicts itself."""

    code = 100


class UnknownName(FreeholdError):
    """No algorithm, task, engine, data set or member of the federation of that name."""

    code = 101


class MissingExtra(FreeholdError):
    """An optional dependency is not installed."""

    code = 102


class PlanError(FreeholdError):
    """A plan is malformed."""

    code = 110


class UnknownKey(PlanError):
    """A key that nobody reads."""

    code = 111


class HyperparameterError(PlanError):
    """A hyper-parameter is out of its range or of the wrong type."""

    code = 112


class PlanVersion(PlanError):
    """A plan of a format version that this Freehold does not read."""

    code = 113


class SpecMismatch(FreeholdError):
    """A contribution has a name, shape or dtype that the plan's contribution spec does not list."""

    code = 114
    exit_code = 1


class NotAsynchronous(PlanError):
    """Asynchronous rounds do not go with this algorithm, or with this way of running a plan."""

    code = 115


class CheckpointError(FreeholdError):
    """A checkpoint is damaged, or belongs to another study than the one to be resumed."""

    code = 120


class CertificateUnfit(FreeholdError):
    """A certificate, key or CA of one's own that cannot be used."""

    code = 130


class DataError(FreeholdError):
    """Data that cannot be used."""

    code = 200


class ColumnMissing(DataError):
    """A column that the schema or the command names is not in the data."""

    code = 201


class BadValue(DataError):
    """A missing value, text or infinity where a number is expected."""

    code = 202
    lines: tuple[tuple[str, str, str], ...] = ()
    """(column, what is wrong with it, what to do), where several columns of a table are refused at once."""
    remedies: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """"categorical", "impute", "drop", "decimal comma" -> columns that would then be usable, or be left out."""


class LabelError(DataError):
    """Labels that the task does not know."""

    code = 203


class SplitOverlap(DataError):
    """The same example stands in two splits."""

    code = 204


class TooFewExamples(DataError):
    """A client has fewer examples than `min_examples`."""

    code = 205


class NotEnoughMemory(DataError):
    """A table needs more memory than there is."""

    code = 206


class Unreadable(DataError):
    """A file is missing, unreadable or malformed."""

    code = 207


class SchemaError(DataError):
    """A schema contradicts itself."""

    code = 208


class NoValidation(DataError):
    """No client has validation examples, so there is nothing to choose by."""

    code = 209


class NodeError(FreeholdError):
    """A node cannot go on."""

    code = 300
    exit_code = 2


class NotJoined(NodeError):
    """This node has no identity in this federation."""

    code = 301
    exit_code = 2


class PinMismatch(NodeError):
    """The coordinator is not the one that the join token names."""

    code = 302
    exit_code = 2


class Unreachable(NodeError):
    """The coordinator does not answer."""

    code = 303
    exit_code = 2


class VaultError(NodeError):
    """Personal state is damaged or cannot be written."""

    code = 304
    exit_code = 1


class DataUnfit(NodeError):
    """A node's data does not fit what a plan asks for."""

    code = 305
    exit_code = 2


class TrainerFailed(NodeError):
    """Training code died, stalled or answered nonsense."""

    code = 306
    exit_code = 1


class JoinTokenError(NodeError):
    """A join token is malformed."""

    code = 307
    exit_code = 2


class Resting(NodeError):
    """The node is outside of the hours that its owner set, or on a metered connection."""

    code = 320
    exit_code = 1


class PolicyError(NodeError):
    """An owner's policy is malformed."""

    code = 330
    exit_code = 2


class PolicyRefused(NodeError):
    """A rule of the owner's policy says no."""

    code = 331
    exit_code = 1


class PlanWaits(NodeError):
    """No rule of the owner's policy covers the plan; it waits until the owner approves it."""

    code = 332
    exit_code = 1


class OwnerDenied(NodeError):
    """The owner of the data denied the plan."""

    code = 333
    exit_code = 1


class BenefitKept(NodeError):
    """The owner does not share what the node measures of its own benefit."""

    code = 334
    exit_code = 1


class ApprovalError(NodeError):
    """The owner's approvals are damaged or cannot be written."""

    code = 335
    exit_code = 1


class ReleaseRefused(NodeError):
    """The guard lets nothing out that the plan does not list, or that cannot be true."""

    code = 336
    exit_code = 1


class BundleRefused(NodeError):
    """The plan's code did not arrive at the node, or is not what the plan names."""

    code = 337
    exit_code = 1


class BundleUnguarded(NodeError):
    """Code that comes with a plan runs in a strong sandbox only, which the node does not have."""

    code = 338
    exit_code = 1


class LedgerError(NodeError):
    """The ledger or the privacy budget cannot be written or read, so nothing leaves."""

    code = 340
    exit_code = 1


class LedgerDamaged(NodeError):
    """The ledger is not as this node wrote it."""

    code = 341
    exit_code = 1


class BudgetDamaged(NodeError):
    """The privacy budget was changed, lost, or put back to an earlier state."""

    code = 342
    exit_code = 1


class BudgetExceeded(NodeError):
    """A study would spend more ε than the owner of the data allows."""

    code = 343
    exit_code = 1


class StateInUse(NodeError):
    """Another guard has this state folder."""

    code = 344
    exit_code = 1


class VaultKeyError(NodeError):
    """The vault's key is missing, open to others, or no key."""

    code = 345
    exit_code = 2


class VaultLocked(NodeError):
    """The vault was written with another key."""

    code = 346
    exit_code = 2


class VaultPutBack(NodeError):
    """The vault was lost, or put back to an earlier state."""

    code = 347
    exit_code = 1


class ControlRefused(NodeError):
    """A control message is larger than any is."""

    code = 348
    exit_code = 1


class CheckpointRefused(NodeError):
    """A checkpoint of the ledger does not hold."""

    code = 349
    exit_code = 1


class CoordinatorError(FreeholdError):
    """A coordinator cannot go on."""

    code = 400
    exit_code = 1


class TokenRefused(CoordinatorError):
    """A join token is unknown, used, expired, revoked, or bound to another node or federation."""

    code = 401
    exit_code = 1


class NoCertificate(CoordinatorError):
    """A request that needs a client certificate came without one."""

    code = 402
    exit_code = 1


class CertificateRefused(CoordinatorError):
    """A certificate is expired, of another federation, or of a role that may not do this."""

    code = 403
    exit_code = 1


class Denied(CoordinatorError):
    """The identity is on the deny list."""

    code = 404
    exit_code = 1


class CsrRefused(CoordinatorError):
    """A certificate request is malformed, or its key was used before."""

    code = 405
    exit_code = 1


class UnknownRun(CoordinatorError):
    """There is no such run or round, or it is not for this node."""

    code = 406
    exit_code = 1


class Late(CoordinatorError):
    """A contribution came after its round was closed."""

    code = 407
    exit_code = 1


class Conflict(CoordinatorError):
    """A second, different contribution to the same round."""

    code = 408
    exit_code = 1


class StudyRefused(CoordinatorError):
    """A study's plan or signature is not accepted."""

    code = 409
    exit_code = 1


class StoreError(CoordinatorError):
    """The coordinator's store cannot be used."""

    code = 410
    exit_code = 1


class ServerCodeFailed(CoordinatorError):
    """The algorithm's server code died or answered nonsense."""

    code = 411
    exit_code = 1


class Busy(CoordinatorError):
    """More contributions at once than the coordinator takes in, of one node or of all."""

    code = 412
    exit_code = 1


class NotAllowed(CoordinatorError):
    """The role of this certificate may not do this, or not to what somebody else began."""

    code = 420
    exit_code = 1


class WireError(FreeholdError):
    """A message is not what it should be."""

    code = 500
    exit_code = 1


class ProtocolVersion(WireError):
    """The other side speaks another version of the protocol."""

    code = 501
    exit_code = 1


class PeerGone(WireError):
    """A local process at the other end of a channel has ended."""

    code = 502
    exit_code = 1


class BodyRefused(WireError):
    """Bytes do not have the length or the digest that was announced."""

    code = 503
    exit_code = 1


class TooLarge(WireError):
    """A body is above its limit."""

    code = 504
    exit_code = 1


class TensorsMalformed(WireError):
    """Bytes are not safetensors, or not the tensors that were announced."""

    code = 505
    exit_code = 1


class EncodingRefused(WireError):
    """A contribution is not compressed as its plan says, or cannot be unpacked within bounds."""

    code = 506
    exit_code = 1


class WeightRefused(WireError):
    """A contribution would count with more than the plan allows."""

    code = 507
    exit_code = 1


class SimulationError(FreeholdError):
    """A simulation cannot go on."""

    code = 600


class NotBatchable(SimulationError):
    """A module cannot be run for many clients at once, or mixes examples in a way padding would change."""

    code = 601


class Diverged(SimulationError):
    """A loss or a contribution is no longer finite; the last good state was kept."""

    code = 602


class NotPrivate(SimulationError):
    """Record-level privacy is set, and this algorithm or module touches examples other than by clipped gradients."""

    code = 603


class TaskError(SimulationError):
    """A module, a loss, a head and data that do not fit together."""

    code = 604


class HiddenTensor(SimulationError):
    """A loss closes over a client's tensor, where a rule for the whole cohort cannot see it; it belongs into `Objective.held`."""

    code = 605


class DeviceMissing(SimulationError):
    """There is no such device to compute on."""

    code = 606


class WorkersLost(SimulationError):
    """Worker processes, or workers on a Ray cluster, end again and again, so the round cannot be computed."""

    code = 607
    exit_code = 1


class ClusterUnfit(SimulationError):
    """A Ray cluster that cannot be reached, or has no processor free."""

    code = 608
    exit_code = 1


class ArenaError(SimulationError):
    """A simulation's personal states on disk cannot be kept or read: no room, in use, damaged, or of another shape."""

    code = 610


class SandboxError(FreeholdError):
    """A jail for training code that cannot be built; nothing is trained."""

    code = 650
    exit_code = 1


class SandboxEscaped(SandboxError):
    """An attempt to get out of the sandbox succeeded in the self-test; the node does not train."""

    code = 651
    exit_code = 1


class SandboxMissing(SandboxError):
    """The machine offers nothing that a sandbox could be made of; the node does not train."""

    code = 652
    exit_code = 1


class BundleUnfit(SandboxError):
    """A bundle of code that is malformed, too large, or not what its digest names."""

    code = 653


class BundleFailed(SandboxError):
    """A bundle whose code cannot be imported, or defines another task than the plan names."""

    code = 654
