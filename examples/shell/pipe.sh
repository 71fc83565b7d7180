#!/bin/sh
# Serve the output of a command, one event per line: ./pipe.sh make -j2
# Later subscribers also receive the earlier lines: curl -N 'http://127.0.0.1:8080/events?since=earliest'
set -eu
"${@:-date}" 2>&1 | relay serve --stdin lines
