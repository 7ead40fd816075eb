"""Changes an input but keeps enough of its format to pass the first checks and reach the reader behind them.

Checksums of tar headers, zip members and PNG chunks are corrected after a change. A number is replaced by an extreme one, and a
word of a text by one that the reader knows. There are also simple changes: flipped bits, cuts and insertions.
"""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

from scripts.fuzz.case import Case, pack, unpack
from scripts.fuzz.seeds import with_checksum

Mutation = Callable[[bytes, random.Random], bytes]

LARGEST = 256_000  # largest input in bytes; longer ones are cut
_BLOCK = 512
_NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    511,
    512,
    1023,
    1024,
    32767,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
_TAR_FIELDS = {
    "name": (0, 100),
    "mode": (100, 108),
    "size": (124, 136),
    "type": (156, 157),
    "link": (157, 257),
    "sparse": (386, 512),
}
_TAR_VALUES = (
    b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7,
    b"\xff" * 12,
    b"77777777777\0",
    b"00000000000\0",
    b"-0000000001\0",
    b"0x1fffffff1\0",
    b"           \0",
    b"../../outside/e.txt\0",
    b"/etc/passwd.txt\0",
    b"a.txt\0",
    b"\xff\xfe.jpg\0",
    b"././@LongLink\0",
)
_TAR_TYPES = b"0\x001234567LKNSVxgXA"
_WORDS = (
    b"null true false .nan .inf -.inf 1e999 -1 0 1 2 0x7fffffffffffffff 99999999999999999999 1e-400 '' [] {} [[]] *a &a <<:"
    b" !!int !!float !!binary !!python/object/apply:os.system !!set !!timestamp ? | > --- ... \\ud800 \\u0000 ${HOME} ${X:-${Y}}"
    b" ${ 5% 3epochs 1Mminutes base: model: image: text: width: depth: image_size: seqhw: data: train: shards: weight: stages:"
    b" start: engine: deepspeed: steps: init: lock: kind: huggingface open_clip sentencepiece step latest ../outside/secret"
    b' "F32" "BF16" "BOOL" "U8" "shape": "dtype": "data_offsets": __metadata__ caption a.b descr fortran_order shape'
    b" '|O' '<f4' '<M8' '<U9' '|V2' ('x','<f4') True False"
).split()


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return a changed input. others: inputs to take pieces from."""
    case = unpack(data)
    if not case:
        return _blunt(data, rng)[:LARGEST]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        name = rng.choice(list(case))
        if others and rng.random() < 0.1:
            _borrow(case, name, unpack(rng.choice(others)), rng)
        else:
            case[name] = mutate_file(name, case[name], rng)
    if len(case) > 1 and rng.random() < 0.03:
        del case[rng.choice(list(case)[1:])]
    return pack(case)[:LARGEST]


def mutate_file(name: str, content: bytes, rng: random.Random) -> bytes:
    """Return a changed file. The kind of change depends on its name and its first bytes."""
    if rng.random() < 0.25:
        return _blunt(content, rng)
    if name.endswith(".tar"):
        return _tar(content, rng)
    if content[:2] == b"PK":
        return _zip(content, rng)
    if content[:4] == b"\x89PNG":
        return _png(content, rng)
    if name.endswith(".safetensors") and len(content) > 8:
        return _safetensors(content, rng)
    if name.rsplit(".", 1)[-1] in ("yaml", "json", "txt"):
        return _words(content, rng)
    return rng.choice((_number, _number, _blunt, _words))(content, rng)


def _borrow(case: Case, name: str, other: Case, rng: random.Random) -> None:
    """Take a file, or the end of one, from another input."""
    if not other:
        return
    theirs = rng.choice(list(other))
    if rng.random() < 0.5:
        case[theirs] = other[theirs]
        return
    ours, cut = case[name], rng.random()
    case[name] = ours[: int(len(ours) * cut)] + other[theirs][int(len(other[theirs]) * cut) :]


def _blunt(content: bytes, rng: random.Random) -> bytes:
    out = bytearray(content)
    at = rng.randrange(len(out) + 1)
    match rng.randrange(7):
        case 0 if out:
            for _ in range(rng.choice((1, 1, 2, 8))):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 1:
            del out[at:]
        case 2:
            del out[at : at + rng.choice((1, 2, 4, 16, 100, 512))]
        case 3:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 100)))
        case 4:
            out[at:at] = out[at : at + rng.choice((8, 64, 512, 4096))] * rng.choice((1, 2, 10))
        case 5:
            out[at:at] = bytes([rng.choice(b"\0\xff[{(\"' \n\x1b")]) * rng.choice((1, 10, 1000, 20000))
        case _ if out:
            out[min(at, len(out) - 1)] = rng.choice(b"\0\x01\x7f\x80\xff ")
    return bytes(out)


def _number(content: bytes, rng: random.Random) -> bytes:
    """Replace a number of 1 to 8 bytes, in either byte order, by an extreme one or by one close to the old value."""
    width = rng.choice((1, 2, 4, 8))
    order: Literal["little", "big"] = rng.choice(("little", "big"))
    if len(content) < width:
        return _blunt(content, rng)
    reach = len(content) if rng.random() < 0.4 else min(len(content), 128)  # headers are at the start
    at = rng.randrange(max(1, reach - width + 1))
    now = int.from_bytes(content[at : at + width], order)
    value = rng.choice((*_NUMBERS, now + 1, now - 1, now * 2, -now)) % 256**width
    return content[:at] + value.to_bytes(width, order) + content[at + width :]


def _words(content: bytes, rng: random.Random) -> bytes:
    """Replace a word of a text by one that a reader knows or by other text from the file, or repeat, extend or remove it."""
    spans = [match.span() for match in re.finditer(rb"[\w.+-]+|[^\w\s]|\n[ ]*", content[:20_000])]
    if not spans:
        return rng.choice(_WORDS) + content
    start, end = rng.choice(spans)
    word = content[start:end]
    first, last = rng.choice(spans)
    new = rng.choice(
        (
            rng.choice(_WORDS),
            rng.choice(_WORDS),
            b"",
            word * rng.choice((2, 30)),
            content[first:last],
            word + b" " + rng.choice(_WORDS),
        )
    )
    return content[:start] + new + content[end:]


def _tar(content: bytes, rng: random.Random) -> bytes:
    """Change a field of a header and correct the checksum, or repeat, remove or swap blocks."""
    blocks = [content[i : i + _BLOCK] for i in range(0, len(content), _BLOCK)]
    heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar" and len(block) == _BLOCK]
    if not heads or rng.random() < 0.25:
        return _blocks(blocks, rng)
    at = rng.choice(heads)
    head = bytearray(blocks[at])
    field, (start, end) = rng.choice(list(_TAR_FIELDS.items()))
    if field == "type":
        head[start] = rng.choice(_TAR_TYPES)
    elif rng.random() < 0.3:
        head[start:end] = mutate_bytes(bytes(head[start:end]), rng, end - start)
    else:
        head[start:end] = (rng.choice(_TAR_VALUES) + bytes(head[start:end]))[: end - start]
    blocks[at] = with_checksum(bytes(head))
    if at + 1 < len(blocks) and head[156] in b"xgXLK" and rng.random() < 0.7:
        blocks[at + 1] = _pax(blocks[at + 1], rng)
    return b"".join(blocks)


def mutate_bytes(field: bytes, rng: random.Random, length: int) -> bytes:
    """Return a simple change that keeps the length."""
    return _blunt(field, rng)[:length].ljust(length, b"\0")


def _blocks(blocks: list[bytes], rng: random.Random) -> bytes:
    if blocks:
        at, other = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        match rng.randrange(4):
            case 0:
                del blocks[at]
            case 1:
                blocks.insert(other, blocks[at])
            case 2:
                blocks[at], blocks[other] = blocks[other], blocks[at]
            case _:
                blocks[at] = _number(blocks[at], rng)
    return b"".join(blocks)


def _pax(block: bytes, rng: random.Random) -> bytes:
    """Put a record into a pax header, in most cases with the correct length."""
    keys = (
        b"path",
        b"size",
        b"linkpath",
        b"GNU.sparse.map",
        b"GNU.sparse.size",
        b"GNU.sparse.numblocks",
        b"GNU.sparse.offset",
        b"mtime",
    )
    values = (b"-1", b"0", b"9" * 20, b"1e5", b"x.txt", b"0,1,5", b"nan", b"", b"\xff", b"12")
    record = b" %s=%s\n" % (rng.choice(keys), rng.choice(values))
    length = len(record) + 2
    text = b"%d%s" % (rng.choice((length, length, length, 0, length + 9, 10**9)), record)
    return (text + block)[:_BLOCK] if rng.random() < 0.7 else mutate_bytes(block, rng, _BLOCK)


def _zip(content: bytes, rng: random.Random) -> bytes:
    """Change a member of a zip and pack it again with the correct CRC, or change a number in the raw headers."""
    if rng.random() < 0.3:
        return (
            _number(content[-200:] if rng.random() < 0.5 else content, rng) if rng.random() < 0.5 else _zip_header(content, rng)
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # an earlier mutation has broken the zip
        return _blunt(content, rng)
    if not members:
        return _blunt(content, rng)
    name = rng.choice(list(members))
    members[name] = (
        _npy(members[name], rng) if members[name][:6] == b"\x93NUMPY" else rng.choice((_number, _blunt))(members[name], rng)
    )
    if rng.random() < 0.1:
        new = rng.choice((name + "x", "../" + name, rng.choice(list(members))))
        members[new] = members.pop(name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in members.items():
            archive.writestr(zipfile.ZipInfo(key), value)
    return buffer.getvalue()


def _zip_header(content: bytes, rng: random.Random) -> bytes:
    """Change a field of a local, central or end record."""
    places = [match.start() for match in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", content)]
    if not places:
        return _blunt(content, rng)
    at = rng.choice(places)
    return content[:at] + _number(content[at : at + 46], rng) + content[at + 46 :]


def _npy(content: bytes, rng: random.Random) -> bytes:
    """Change a word or number in the header of an array file, and correct the header's length."""
    if len(content) < 12 or rng.random() < 0.2:
        return _number(content, rng)
    length = struct.unpack("<H", content[8:10])[0]
    header, body = content[10 : 10 + length], content[10 + length :]
    if rng.random() < 0.5:
        header = re.sub(
            rb"\d+", lambda m: str(rng.choice((*_NUMBERS, int(m[0]) + 1))).encode() if rng.random() < 0.4 else m[0], header
        )
    else:
        header = _words(header, rng)
    header = header[:60_000]
    return content[:8] + struct.pack("<H", len(header)) + header + body


def _png(content: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG, and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return _blunt(content, rng)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(4):
        case 0:
            chunks.insert(
                at, (rng.choice((b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"iTXt", b"zTXt", b"eXIf", b"IDAT")), body)
            )
        case 1 if kind == b"IDAT":
            chunks[at] = (kind, zlib.compress(bytes(rng.choice((0, 10, 10**6)))))
        case _:
            chunks[at] = (kind, _number(body, rng) if body else b"\xff" * 9)
    pieces = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return content[:8] + b"".join(pieces)


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change a word or number in the header, and correct the header's length."""
    length = struct.unpack("<Q", content[:8])[0]
    if length > len(content) or rng.random() < 0.1:
        return _number(content, rng)
    header = _words(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
