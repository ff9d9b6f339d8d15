#!/bin/sh
# The tests of a source tree in a fresh VM: the tree goes in, a report comes out, and nothing else stays.
# Usage: ci_job.sh SOURCE_DIR RESULT_DIR
set -eu
source=$1
result=$2
microvm run -q --timeout 10m --in "$source" --out "$result" -w /workspace/input \
  sh -c 'python3 -m unittest discover -v . 2> /workspace/output/report.txt'
tail -n 1 "$result/report.txt"
