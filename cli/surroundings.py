"""What a machine leaves undone for a program: an encoding, a user with a name and a home, a short place for sockets.

Nothing here imports what it prepares for.
"""

from __future__ import annotations

import contextlib
import io
import locale
import os
import pwd
import sys
import tempfile

SOCKET_PATH = 60  # characters of the folder of temporary files, so that names of sockets in it stay below 108


def speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale says otherwise: it would misread names of files and texts."""
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def settle() -> None:
    """Fill in what libraries end with a traceback without. Raises FileNotFoundError where that cannot be filled in."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder has been deleted; change to one that is there") from None
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own is not there in this process
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # PYTHONIOENCODING may name one that lacks a letter of a name
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    temporary = tempfile.gettempdir()
    if len(temporary) > SOCKET_PATH and os.access("/tmp", os.W_OK):
        temporary = tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a user of a container
        home = ""
        for name in ("USER", "LOGNAME"):
            os.environ.setdefault(name, f"uid{os.getuid()}")
    home = os.environ.get("HOME") or home
    if not os.access(home or "/", os.W_OK) or home in ("", "/"):
        os.environ["HOME"] = home if os.path.isdir(home) and home != "/" else temporary
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(temporary, f"matplotlib-{os.getuid()}"))
        os.environ.setdefault("XDG_CACHE_HOME", os.path.join(temporary, f"cache-{os.getuid()}"))
        with contextlib.suppress(OSError):
            os.makedirs(os.environ["MPLCONFIGDIR"], mode=0o700, exist_ok=True)
