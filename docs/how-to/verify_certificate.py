"""Check an epsilon certificate of a hospital, offline, with nothing of wardround: pip install dp-accounting, then

    python verify_certificate.py certificate.json --key node.pub --knows 5e41...c07a

It ends with 0 when the certificate holds, with 1 and a reason when it does not. What is checked, in this order:
1. the file is one JSON object with the fields of a certificate, and its SHA-256 is the one that it names;
2. the hospital's key signed that (ECDSA on P-384), and is the one of --key, an OpenSSH line, if that is given;
3. each entry's digest is SHA-256(digest before, a newline, the entry's text), from 64 zeros on, up to the head;
4. the entries are a ledger: a round is paid once, before its reply; rounds of a run go forward, under one agreement;
5. the rows (noise multiplier, sampling rate, count) are the sum of all that the entries paid;
6. they cost at most the claimed epsilon at the claimed delta by Google's dp-accounting (0.2 % more, for it rounds up);
7. the digests of --knows are in it: of a reply that you received, or a head that you wrote down.

No file shows that noise was drawn as it says, or that there is no second ledger: ask for the audit, and use --knows.
"""

import argparse
import base64
import hashlib
import json
import math
import re
import sys
from pathlib import Path

CLAIM = {"wardround_certificate", "hospital", "declared_patients", "time", "epsilon", "delta"}
FIELDS = CLAIM | {"rows", "head", "entries", "public_key", "sha256", "signature"}
ALL = {"kind", "time", "run", "round", "federation", "coordinator", "question", "rows", "delta", "epsilon_after"}
KINDS = {
    "reserved": ALL | {"request_sha256", "bundle_sha256"},
    "released": ALL | {"bundle_sha256", "reservation", "layout", "norm", "bytes", "sha256"},
    "adopted": ALL | {"sha256"},
}
LATER = {"question", "bundle_sha256"}  # the first ledgers did not write them
ALLOWED = 1.002  # privacy loss distributions are rounded up
P = 2**384 - 2**128 - 2**96 + 2**32 - 1  # the curve P-384: FIPS 186-4, D.1.2.4
B = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
GX = 0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7
GY = 0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F


def demand(true, why):
    if not true:
        raise ValueError(why)


def parsed(text):
    """One JSON object without a name twice, without NaN."""

    def once(pairs):
        demand(len(dict(pairs)) == len(pairs), "a name stands twice in one object")
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=once, parse_constant=lambda word: demand(False, f"{word} is no number"))
    return value if isinstance(value, dict) else demand(False, "no JSON object")


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def summed(rows, into):
    """Add rows to {(noise multiplier, sampling rate): count}."""
    for row in rows:
        demand(isinstance(row, list) and len(row) == 3 and all(map(is_number, row)), "a row that is none")
        noise, rate, count = row
        possible = 0 < noise <= 1e9 and 0 < rate <= 1 and type(count) is int and 0 < count <= 10**9
        demand(possible, f"{count} answers of noise multiplier {noise} at sampling rate {rate}")
        into[float(noise), float(rate)] = into.get((float(noise), float(rate)), 0) + count
    return into


def add(a, b):
    """Two points of the curve, None for the one at infinity."""
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(number, point):
    result = None
    while number:
        result = add(result, point) if number & 1 else result
        point, number = add(point, point), number >> 1
    return result


def signed(message, signature, key):
    """Whether r and s, 96 hex digits each, are the key's signature (ECDSA, SHA-384). The least of the two s counts."""
    blob, fields = base64.b64decode(key.split()[1], validate=True), []
    while blob:
        size = int.from_bytes(blob[:4], "big")
        fields, blob = [*fields, blob[4 : 4 + size]], blob[4 + size :]
    demand(fields[:2] == [b"ecdsa-sha2-nistp384", b"nistp384"] and fields[2][:1] == b"\x04", "no key on P-384")
    x, y = int.from_bytes(fields[2][1:49], "big"), int.from_bytes(fields[2][49:], "big")
    demand(x < P and y < P and (y * y - x**3 + 3 * x - B) % P == 0, "no point of P-384")
    demand(re.fullmatch("[0-9a-f]{192}", signature), "no signature")
    r, s = int(signature[:96], 16), int(signature[96:], 16)
    demand(0 < r < N and 0 < s <= N // 2, "no signature of the only form that is allowed")
    z, w = int.from_bytes(hashlib.sha384(message).digest(), "big"), pow(s, -1, N)
    point = add(times(z * w % N, (GX, GY)), times(r * w % N, (x, y)))
    return point is not None and point[0] % N == r


def replayed(entries):
    """The entries as a ledger -> (what they paid, the last digest, all digests)."""
    paid, digest, known = {}, "0" * 64, {"0" * 64}
    reserved, released, latest, agreement = {}, set(), {}, {}
    for number, entry in enumerate(entries, 1):
        demand(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str), f"entry {number} is none")
        digest = hashlib.sha256(f"{digest}\n{entry[0]}".encode()).hexdigest()
        demand(digest == entry[1], f"the chain is broken at entry {number}")
        body = parsed(entry[0])
        names = KINDS.get(body.get("kind"), set())
        demand(names - LATER <= set(body) <= names, f"entry {number} has other fields than an entry")
        run, round_, agreed = body["run"], body["round"], body["federation"]
        demand(type(run) is type(agreed) is str and type(round_) is int, f"entry {number} is of no round")
        demand(is_number(body["delta"]) and is_number(body["epsilon_after"]), f"entry {number} has no price")
        if body["kind"] == "reserved":
            demand((run, round_) not in reserved, f"entry {number} pays a round for the second time")
            demand(round_ >= latest.get(run, round_), f"entry {number} is of a round that was over")
            demand(agreement.setdefault(run, agreed) == agreed, f"entry {number} is of another agreement than its run")
            reserved[run, round_], latest[run] = (number, body), round_
        if body["kind"] == "released":
            of, price = reserved.get((run, round_), (0, {}))
            demand(of == body["reservation"] and of not in released, f"entry {number} is the reply of nothing")
            same = ("rows", "federation", "coordinator", "delta", "epsilon_after")
            demand(all(body[name] == price[name] for name in same), f"entry {number} is not what was paid for")
            released.add(of)
        else:
            summed(body["rows"], paid)
        known |= {digest, body.get("sha256") or digest}
    return paid, digest, known


def cost(rows, delta, claim):
    """An upper bound on epsilon at delta, by dp-accounting, with a grid that suits an epsilon of about the claim."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    widest = max((0.5 / noise**2 + 10 / noise for noise, _ in rows), default=0)  # losses of one answer
    grid = max(2e-5, 1e-3 * claim / math.sqrt(sum(rows.values()) or 1), widest / 2e6)
    total = None
    for (noise, rate), count in rows.items():
        one = pld.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=grid)
        total = one.self_compose(count) if total is None else total.compose(one.self_compose(count))
    return 0.0 if total is None else total.get_epsilon_for_delta(delta)


def verify(data, key="", knows=()):
    """What the certificate in these bytes says, if it holds. Raises: ValueError, with the reason why it does not."""
    said = parsed(data.decode("utf-8"))
    demand(set(said) == FIELDS and said["wardround_certificate"] == 1, "no certificate of version 1")
    demand(isinstance(said["entries"], list) and isinstance(said["public_key"], str), "fields of other types")
    body = {name: value for name, value in said.items() if name not in ("sha256", "signature")}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    demand(hashlib.sha256(text).hexdigest() == said["sha256"], "it was changed: its SHA-256 is another")
    if said["public_key"] or said["signature"] or key:
        demand(not key or key.split()[1:2] == said["public_key"].split()[1:2], "it is of another key than --key")
        message = f"wardround: epsilon certificate\n{said['sha256']}".encode()
        demand(signed(message, said["signature"], said["public_key"]), "the signature is not of this key and file")
    paid, head, known = replayed(said["entries"])
    demand(head == said["head"], "the head is not the last entry's digest")
    demand(summed(said["rows"], {}) == paid, "the rows are not the sum of what the entries paid")
    claim, delta = said["epsilon"], said["delta"]
    demand(is_number(claim) and claim >= 0 and is_number(delta) and 0 < delta < 1, "no epsilon and delta")
    above = cost(paid, delta, claim)
    demand(above <= claim * ALLOWED + 1e-5, f"the rows cost epsilon {above:.5g}, more than the claimed {claim:.5g}")
    for digest in knows:
        demand(digest in known, f"{digest[:64]} is not in it: it is not of the whole ledger")
    return said, above


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("certificate", help="the file")
    parser.add_argument("--key", help="the hospital's public key, an OpenSSH file that came by another road")
    parser.add_argument("--knows", action="append", default=[], help="a digest that must be in it")
    asked = parser.parse_args()
    try:
        key = Path(asked.key).read_text(encoding="utf-8") if asked.key else ""
        said, above = verify(Path(asked.certificate).read_bytes(), key, asked.knows)
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        print(f"DOES NOT HOLD: {ascii(str(error))[:300]}")
        return 1
    print(f"HOLDS: {ascii(said['hospital'])[:80]}, {len(said['entries'])} entries, head {said['head']}")
    print(f"epsilon {said['epsilon']:.5g} at delta {said['delta']:.3g} is claimed; dp-accounting finds {above:.5g}")
    who = hashlib.sha256(base64.b64decode(said["public_key"].split()[1])).digest() if said["public_key"] else b""
    print(
        f"signed by SHA256:{base64.b64encode(who).decode().rstrip('=')}" if who else "NOT SIGNED: anyone can write it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
