#!/usr/bin/env python3
"""Jobs from a queue, each in a VM of its own that was waiting in a pool; through the command line only."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

JOBS = ["2**10", "sum(range(100))", "max(map(len, ['a', 'bbb']))", "1/0"]


def run(job):
    command = ["microvm", "--output", "json", "run", "--pool", "jobs", "--timeout", "30s"]
    done = subprocess.run([*command, "python3", "-c", f"print({job})"], capture_output=True, text=True)
    answer = json.loads(done.stdout)
    last = (answer["stdout"] or answer["stderr"]).strip().splitlines()[-1]
    return f"{job} → {last} (exit code {answer['exit_code']})"


def main():
    subprocess.run(["microvm", "pool", "create", "jobs", "--min", "2"], check=True, stdout=subprocess.DEVNULL)
    try:
        with ThreadPoolExecutor(max_workers=2) as workers:
            for line in workers.map(run, JOBS):
                print(line)
    finally:
        subprocess.run(["microvm", "pool", "rm", "jobs"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
