"""Public weights by name, fetched so that a file is either whole and the published one, or not there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from samdeblur.storage.files import PARTIAL, fsync_path, sha256_file

BUNDLED = Path(__file__).parents[1] / "bundled"
BUNDLED_NETWORK, BUNDLED_SAM = BUNDLED / "nafnet.safetensors", BUNDLED / "sam.safetensors"

TIMEOUT = 30.0  # seconds for one read
ATTEMPTS, PAUSE = 3, 2.0  # connections per fetch, seconds between them
PIECE = 1 << 18  # most bytes held in memory


class WeightsError(OSError):
    """Weights that could not be fetched, or are not what was published under their name."""


class WeightsMissing(WeightsError, FileNotFoundError):
    """Weights that are not there, and cannot be fetched in the way that was asked for."""


@dataclass(frozen=True)
class Weight:
    """A published file of weights."""

    name: str
    file: str
    bytes: int
    sha256: str
    address: str | None  # None: it cannot be fetched by a plain download
    page: str  # where a person finds it
    what: str
    licence: str


def _sam(name: str, file: str, size: int, sha256: str, what: str) -> Weight:
    address = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    page = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
    return Weight(name, file, size, sha256, address, page, f"Segment Anything, {what}", "Apache-2.0")


def _sam2(size: str, bytes_: int, sha256: str) -> Weight:
    """Sizes and digests of these are as several public repositories that check them agree; not seen by this project."""
    file = f"sam2.1_hiera_{size}.pt"
    address = f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{file}"
    page = "https://github.com/facebookresearch/sam2#download-checkpoints"
    what = f"Segment Anything 2.1, Hiera {size.replace('_', ' ')}; needs the package sam2"
    return Weight(f"sam2.1_hiera_{size}", file, bytes_, sha256, address, page, what, "Apache-2.0")


_MOBILE_SAM = "f706ad9c4eb7f219c00d9050e46328518ffb65d2"  # commit


def _nafnet(width: int, size: int, sha256: str, drive: str) -> Weight:
    """Sizes and digests of these are from elsewhere: this project has not seen the files."""
    page = f"https://drive.google.com/file/d/{drive}"
    what = f"NAFNet of width {width} trained on GoPro; size and SHA-256 not verified by this project"
    file = f"NAFNet-GoPro-width{width}.pth"
    return Weight(f"nafnet_gopro_width{width}", file, size, sha256, None, page, what, "MIT, as its code")


_KNOWN = (
    _sam(
        "sam_vit_h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "ViT-H, the largest",
    ),
    _sam(
        "sam_vit_l",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "ViT-L",
    ),
    _sam(
        "sam_vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "ViT-B, the smallest",
    ),
    _sam2("tiny", 156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _sam2("small", 184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _sam2("base_plus", 323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    _sam2("large", 898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
    Weight(
        "mobile_sam",
        "mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        f"https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/{_MOBILE_SAM}/weights/mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM",
        "MobileSAM, TinyViT; needs the package timm",
        "Apache-2.0",
    ),
    _nafnet(
        32,
        68_671_121,
        "19394e6155d12ef6371d1d57496f87f0ec88f92bdffa27c0792690722d5d1a5c",
        "1Fr2QadtDCEXg6iwWX8OzeZLbHOx2t5Bj",
    ),
    _nafnet(
        64,
        271_778_961,
        "329d3ab4077b8d6b7ff61de376e483714667960bf85be027bf4335cda701196f",
        "1S0PVRbyTakYY9a82kujgZLbMihfNBLfC",
    ),
)
WEIGHTS = {weight.name: weight for weight in _KNOWN}


def weights_folder() -> Path:
    """Where fetched weights lie: $SAMDEBLUR_WEIGHTS, or samdeblur/weights in the cache of the user."""
    if chosen := os.environ.get("SAMDEBLUR_WEIGHTS"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "samdeblur" / "weights"


def known_path(name_or_path: str) -> str | None:
    """The path of fetched weights when this is a name of `WEIGHTS`; None for anything else.

    Raises:
        WeightsMissing: a known name, and its file is not in `weights_folder()`.
    """
    weight = WEIGHTS.get(name_or_path)
    if weight is None:
        return None
    path = weights_folder() / weight.file
    if not path.is_file():
        raise WeightsMissing(f"{weight.name}: not in {path.parent}; run samdeblur-prep weights fetch {weight.name}")
    return str(path)


def no_such_checkpoint(path: str | Path) -> FileNotFoundError:
    """The error for a file that is not there; for a file of `WEIGHTS` it says where that comes from."""
    weight = next((weight for weight in _KNOWN if weight.file == Path(path).name), None)
    if weight is None:
        return FileNotFoundError(f"{path}: no such checkpoint")
    if (weights_folder() / weight.file).is_file():
        return FileNotFoundError(f"{path}: no such checkpoint; it is fetched already: name it {weight.name}")
    does = "fetches it" if weight.address else "says where to get it"
    return FileNotFoundError(f"{path}: no such checkpoint; samdeblur-prep weights fetch {weight.name} {does}")


def fetch(
    weight: Weight, folder: Path, mirror: str | None = None, progress: Callable[[int], None] = lambda n: None
) -> Path:
    """Download weights into a folder, unless they are there; what an earlier call got of them is not sent again.

    Args:
        mirror: where the file lies instead: an http://, https:// or file:// address or a folder, without its name.
        progress: called with the number of bytes there are more; of fewer when a server makes it start over.

    Returns:
        The path of the file. Its SHA-256 is the published one.

    Raises:
        WeightsMissing: no address is known, or the mirror is of another kind.
        WeightsError: no connection, a refusal, another process at it, or a file that is not the published one.
        OSError: the folder cannot be written to, the disk is full.
    """
    target = folder / weight.file
    if target.exists():
        if (found := sha256_file(target).hex()) != weight.sha256:
            raise WeightsError(f"{target}: not {weight.name}, {_digests(weight, found)}; move it away to fetch it")
        return target
    address = _address(weight, folder, mirror)
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    with _locked_partial(partial) as file:
        _download(weight, address, file, progress)
        os.fsync(file.fileno())
        if (found := sha256_file(partial).hex()) != weight.sha256:
            partial.unlink()
            raise WeightsError(f"{weight.name}: {address} sent another file, {_digests(weight, found)}; deleted")
        os.replace(partial, target)
        fsync_path(folder)
    return target


def _digests(weight: Weight, found: str) -> str:
    return f"SHA-256 {found} instead of {weight.sha256}"


def _address(weight: Weight, folder: Path, mirror: str | None) -> str:
    if mirror is None and weight.address is None:
        raise WeightsMissing(
            f"{weight.name}: no address for downloads; get {weight.file} with a browser from {weight.page} and put it "
            f"into {folder}, or give --mirror"
        )
    if mirror is None:
        return str(weight.address)
    scheme, separator, _ = mirror.partition("://")
    if not separator:
        mirror = Path(mirror).expanduser().absolute().as_uri()
    elif scheme not in ("http", "https", "file"):
        raise WeightsMissing(f"{mirror}: not a folder, nor an http://, https:// or file:// address")
    return f"{mirror.rstrip('/')}/{weight.file}"


@contextmanager
def _locked_partial(partial: Path) -> Iterator[IO[bytes]]:
    """A file to append to, locked against other processes; removed if nothing is in it in the end."""
    try:
        with open(partial, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.path.samestat(os.fstat(file.fileno()), partial.stat())  # or it was renamed meanwhile
            except (BlockingIOError, FileNotFoundError):
                mine = False
            if not mine:
                raise WeightsError(f"{partial}: another process is fetching it; wait for it")
            try:
                yield file
            finally:
                if not os.fstat(file.fileno()).st_size:
                    partial.unlink()
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(partial)  # a full disk does not say which
        raise


class _BrokenConnection(Exception):
    """A connection that failed, and whether another may not."""

    def __init__(self, reason: object, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http:// and https:// only; the library's also goes to ftp://."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, f"redirects to {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(weight: Weight, address: str, file: IO[bytes], progress: Callable[[int], None]) -> None:
    """Append to a file what it lacks, over several connections if need be."""
    progress(file.tell())
    for left in reversed(range(ATTEMPTS)):
        if file.tell() == weight.bytes:
            return
        try:
            _append(weight, address, file, progress)
        except _BrokenConnection as error:
            if not (left and error.again):
                raise WeightsError(
                    f"{weight.name}: cannot reach {address} ({error}); download it elsewhere and put it into "
                    f"{Path(file.name).parent}, or give --mirror"
                ) from error
            time.sleep(PAUSE)


def _append(weight: Weight, address: str, file: IO[bytes], progress: Callable[[int], None]) -> None:
    """Append over one connection; a server that does not send parts makes the file start over."""
    start = file.tell()
    with _connection():
        request = Request(address, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            answer = build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code != 416:  # more is there already than the server has
                raise
            error.close()
            answer = build_opener(_Redirects).open(Request(address), timeout=TIMEOUT)
    with answer:
        whole = answer.status != 206
        if (size := answer.headers["Content-Length"]) != str(weight.bytes - (0 if whole else start)):
            ending = "" if whole else f" after the first {start}"
            raise WeightsError(
                f"{weight.name}: {address} sends {size or 'an unknown number of'} bytes{ending}; the file has "
                f"{weight.bytes}"
            )
        if whole and start:
            file.seek(0)
            file.truncate()
            progress(-start)
        while True:
            with _connection():
                piece = answer.read1(PIECE)
            if not piece:
                break
            file.write(piece)
            file.flush()
            progress(len(piece))
    if file.tell() < weight.bytes:
        raise _BrokenConnection(f"the connection ended after {file.tell()} of {weight.bytes} bytes")


@contextmanager
def _connection() -> Iterator[None]:
    """Raise _BrokenConnection for what the library reports of addresses, servers and connections."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise _BrokenConnection(f"{error.code} {error.reason}", again=error.code >= 500) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _BrokenConnection(
            getattr(reason, "strerror", None) or reason, not isinstance(reason, FileNotFoundError)
        ) from error
