#!/bin/sh
# Prints the Python that the virtual environment is made from: $PYTHON if set, else the first usable one on the path.
# Usable: 3.11 to 3.14, with the modules venv and ensurepip (Debian keeps those in a package of its own).
set -eu

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if usable "$PYTHON"; then
        echo "$PYTHON"
        exit 0
    fi
    echo "PYTHON=$PYTHON is not a Python 3.11 to 3.14 with the modules venv and ensurepip: name another one, or leave PYTHON unset." >&2
    exit 1
fi

for candidate in python3 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then
        echo "$candidate"
        exit 0
    fi
done
echo "No Python 3.11 to 3.14 with the modules venv and ensurepip is on the path: install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name it with make PYTHON=/path/to/python." >&2
exit 1
