"""What crosses between coordinator and hospital: two messages, each ONE safetensors blob with a JSON header.

A blob's length depends on the model and on nothing else, so its size tells nothing about the data. The same message is
the same bytes, always: replies are stored and sent again as they are, and receipts name them by SHA-256. Unpacking
never runs code (safetensors, not pickle), and reads no more than `limit_bytes`.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from wardround.config import Name
from wardround.errors import MessageError

Vector = npt.NDArray[np.float32]
VERSION: Literal[1] = 1
HEADER_BYTES = 8192  # every header is padded to this, whatever names and numbers it holds; the longest fits
GREATEST_HEADER_BYTES = 4 * HEADER_BYTES  # as it is read, with what safetensors adds
LIMIT_BYTES = 1 << 30
H = TypeVar("H", bound=BaseModel)
_DIGEST = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Answered(_Header):
    """An answer that the coordinator has: its run, the digest of that run's agreement, its round, and the SHA-256 of
    the reply's bytes. The hospital's ledger holds a receipt of the same SHA-256, or the answer was another ledger's.
    """

    run: Name
    federation: _DIGEST
    round: Annotated[int, Field(ge=0, le=1_000_000)]
    sha256: _DIGEST


class RequestHeader(_Header):
    """run: the run's name, chosen by the coordinator and kept over a resume. federation: `Federation.digest`.
    round: number in `Schedule.rounds`, from 0. last: the last answer of this very hospital that the coordinator has, of
    any run; None when it has none.
    """

    version: Literal[1] = VERSION
    kind: Literal["request"] = "request"
    run: Name
    federation: _DIGEST
    round: Annotated[int, Field(ge=0, le=1_000_000)]
    last: Answered | None = None


class Refusal(_Header):
    """Why a hospital does not answer: the error's class, and of a policy its rule, what was asked, what is allowed."""

    error: Annotated[str, Field(max_length=64)]
    rule: Annotated[str, Field(max_length=128)] = ""
    asked: Annotated[str, Field(max_length=256)] = ""
    allowed: Annotated[str, Field(max_length=256)] = ""


class ReplyHeader(_Header):
    """hospital, declared_patients: public, as in hospital.toml. epsilon: what this run has cost this hospital so far,
    computed from public numbers only.
    """

    version: Literal[1] = VERSION
    kind: Literal["reply"] = "reply"
    run: Name
    round: Annotated[int, Field(ge=0, le=1_000_000)]
    hospital: Name
    declared_patients: Annotated[int, Field(ge=1, le=10**9)]
    epsilon: Annotated[float, Field(ge=0)]
    refusal: Refusal | None = None


class RoundRequest:
    """A round's question: the header, theta float32 [P], and the public feature scaling shift, scale float32 [d]."""

    def __init__(self, header: RequestHeader, theta: Vector, shift: Vector, scale: Vector) -> None:
        self.header, self.theta, self.shift, self.scale = header, theta, shift, scale

    def pack(self) -> bytes:
        """The blob that is sent."""
        return _pack(self.header, {"theta": self.theta, "shift": self.shift, "scale": self.scale})

    @classmethod
    def unpack(cls, blob: bytes, *, size: int, scaling_size: int) -> RoundRequest:
        """Read and check a blob: theta must be finite float32 [size], shift and scale [scaling_size], scale > 0.

        Raises: MessageError.
        """
        header, arrays = _unpack(blob, RequestHeader, ("theta", "shift", "scale"))
        theta = _checked("theta", arrays["theta"], size)
        shift = _checked("shift", arrays["shift"], scaling_size)
        scale = _checked("scale", arrays["scale"], scaling_size)
        if not (scale > 0).all():
            raise MessageError("scale is not positive everywhere", allowed="numbers above 0")
        return cls(header, theta, shift, scale)


class RoundReply:
    """A hospital's answer: the header and answer float32 [P] (a delta), [classes + 2 d] (statistics),
    [classes^2] (confusion) or [0] (a refusal).
    """

    def __init__(self, header: ReplyHeader, answer: Vector) -> None:
        self.header, self.answer = header, answer

    def pack(self) -> bytes:
        """The blob that is sent."""
        return _pack(self.header, {"answer": self.answer})

    @classmethod
    def unpack(cls, blob: bytes, *, run: str, round: int, size: int) -> RoundReply:
        """Read and check a blob against the question that was asked.

        Raises: MessageError: malformed, another run or round, a wrong shape, NaN or infinity.
        """
        header, arrays = _unpack(blob, ReplyHeader, ("answer",))
        if (header.run, header.round) != (run, round):
            raise MessageError(
                f"a reply to run {header.run!r} round {header.round}", allowed=f"run {run!r} round {round}"
            )
        return cls(header, _checked("answer", arrays["answer"], 0 if header.refusal else size))


def request_bytes(size: int, scaling_size: int) -> int:
    """The most bytes of a request with theta [size], shift and scale [scaling_size], whoever packed it."""
    return 8 + GREATEST_HEADER_BYTES + 4 * (size + 2 * scaling_size)


def reply_bytes(numbers: int) -> int:
    """The length of a reply that holds so many numbers: it depends on nothing else."""
    header = ReplyHeader(run="run", round=0, hospital="hospital", declared_patients=1, epsilon=0.0)
    return len(RoundReply(header, np.zeros(numbers, np.float32)).pack())


def peek_request(blob: bytes) -> RequestHeader:
    """The header of a request, before the arrays are looked at. Raises: MessageError."""
    return _header(blob, RequestHeader)


def peek_reply(blob: bytes) -> ReplyHeader:
    """The header of a reply, before the arrays are looked at. Raises: MessageError."""
    return _header(blob, ReplyHeader)


def _pack(header: BaseModel, arrays: dict[str, Vector]) -> bytes:
    text = header.model_dump_json().encode("ascii", "replace").decode()  # one byte a character, and still JSON
    size = len(json.dumps(text)) - 2  # as it lies in the outer JSON, where quotes take two bytes
    if size > HEADER_BYTES:
        raise MessageError(f"a header of {size} bytes", allowed=f"at most {HEADER_BYTES}")
    tensors = {name: np.ascontiguousarray(array, dtype="<f4") for name, array in arrays.items()}
    return safetensors.numpy.save(tensors, metadata={"wardround": text + " " * (HEADER_BYTES - size)})


def _header(blob: bytes, header: type[H]) -> H:
    if len(blob) > LIMIT_BYTES:
        raise MessageError(f"a message of {len(blob)} bytes", allowed=f"at most {LIMIT_BYTES}")
    try:
        length = int.from_bytes(blob[:8], "little")
        if length > GREATEST_HEADER_BYTES:
            raise MessageError(f"a header of {length} bytes", allowed=f"at most {GREATEST_HEADER_BYTES}")
        text = json.loads(blob[8 : 8 + length], object_pairs_hook=_once)["__metadata__"]["wardround"]
        return header.model_validate(json.loads(text, object_pairs_hook=_once))
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MessageError(f"not a {header.__name__} of wardround ({type(error).__name__})") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object without repeated keys: two readers must not see two messages. Raises: ValueError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _unpack(blob: bytes, header: type[H], names: tuple[str, ...]) -> tuple[H, dict[str, Vector]]:
    parsed = _header(blob, header)
    try:
        arrays = safetensors.numpy.load(blob)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError(f"not a {header.__name__} of wardround ({type(error).__name__})") from None
    if set(arrays) != set(names):
        raise MessageError(f"arrays {sorted(arrays)}", allowed=", ".join(names))
    return parsed, arrays


def _checked(name: str, array: npt.NDArray[np.generic], size: int) -> Vector:
    if array.dtype != np.float32 or array.shape != (size,):
        raise MessageError(f"{name} is {array.dtype} {list(array.shape)}", allowed=f"float32 [{size}]")
    if not np.isfinite(array).all():
        raise MessageError(f"{name} holds NaN or infinity", allowed="finite numbers")
    return array.astype(np.float32, copy=False)
