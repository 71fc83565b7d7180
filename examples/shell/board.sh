#!/bin/sh
# Print the newest measurement of each topic, then every new one: ./board.sh 'temperature' 10
# The second argument is the number of lines after which to stop. feed.sh publishes measurements.
set -eu
exec relay subscribe "${RELAY_URL:-http://127.0.0.1:8080}" --topic "${1:-**}" --since last --output data ${2:+--count "$2"}
