#!/bin/sh
case "$1" in
--help) echo "usage: tool WORD..." ;;
*) echo "$(id -un): $*" ;;
esac
