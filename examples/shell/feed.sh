#!/bin/sh
# Publish the temperature of each minute over relay's Unix socket: ./feed.sh [count]
# `relay publish` waits for the acknowledgement of each line. It reconnects and resends unacknowledged lines.
set -eu
count=${1:-60}
pause_s=${PAUSE_S:-60}

measure() {
    for number in $(seq "$count"); do
        [ "$number" = 1 ] || sleep "$pause_s"
        printf '{"topic": "temperature", "key": "cpu", "data": {"number": %d, "celsius": %d}}\n' "$number" $((40 + number % 5))
    done
}

measure | relay publish --to "unix:${RELAY_SOCKET:-relay.sock}"
