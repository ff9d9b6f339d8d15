#!/usr/bin/env python3
"""The REST interface with nothing but Python's standard library: create a VM, run commands in it, delete it."""

import http.client
import json
import os
import socket
import sys


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the server's Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def call(connection, method, path, body=None):
    """One request; answers of 400 and above are raised with what the server says."""
    headers = {"content-type": "application/json"} if body is not None else {}
    connection.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    answer = response.read()
    answer = json.loads(answer) if answer else None
    if response.status >= 400:
        raise RuntimeError(f"{answer['code']}: {answer['detail']}")
    return answer


def main():
    root = os.environ.get("MICROVM_ROOT") or (
        "/var/lib/microvm" if os.geteuid() == 0 else os.path.expanduser("~/.local/share/microvm")
    )
    connection = UnixConnection(os.path.join(root, "run", "api.sock"))
    vm = call(connection, "POST", "/vms", {"labels": {"example": "rest"}})
    try:
        command = ["python3", "-c", "print(6 * 7)"]
        done = call(connection, "POST", f"/vms/{vm['id']}/guest/execute", {"command": command, "timeout": 60})
        print(f"exit code {done['exit_code']}, printed {done['stdout'].strip()}")
        try:
            call(connection, "GET", f"/vms/{vm['id']}/files?path=/no/such/file")
        except RuntimeError as error:
            print(error)
    finally:
        call(connection, "DELETE", f"/vms/{vm['id']}")


if __name__ == "__main__":
    sys.exit(main())
