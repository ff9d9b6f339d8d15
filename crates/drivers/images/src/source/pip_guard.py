"""Lets no program start from the Python of the host's pip: wheels are only fetched and unpacked. And makes that Python answer with
the version of the image's when pip asks which dependencies it needs: pip has an option for the version of wheels alone.

pip runs build scripts of packages, and git, as programs of their own. Its options do not cover requirements of packages that are
addresses; this does.
"""
import os
import platform
import sys

_STARTS = {
    "subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn",
}


def _refuse(event, arguments):
    if event in _STARTS:
        raise PermissionError("no program may be started: " + repr(arguments[:1]))


sys.addaudithook(_refuse)
# What markers such as `python_version < "3.8"` are compared with (pip._vendor.packaging.markers.default_environment).
_version = os.environ.get("MICROVM_IMAGE_PYTHON")
if _version and tuple(_version.split(".")) != platform.python_version_tuple()[:2]:
    platform.python_version = lambda: _version + ".0"
    platform.python_version_tuple = lambda: (*_version.split("."), "0")
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "active"), "w"):
    pass
