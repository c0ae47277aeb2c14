#!/bin/sh
# One session of memccp and memccat: tools.sh HOST:PORT QUEUE session|hold. Each call is a connection of its own.
set -eu
address=$1 queue=$2 mode=$3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# Waits for an item that nobody puts, with the held one open.
[ "$mode" = hold ] && exec memccat --servers="$address" "${queue}_held/open" "${queue}_never/t=600000"

is() { [ "$1" = "$2" ] || { echo "$3: got '$1'"; exit 1; }; }
get() { memccat --servers="$address" "$1" 2>/dev/null || true; }

printf one >"$dir/$queue"
memccp --servers="$address" --set "$dir/$queue"
# The connection ends with the read open: the item is back.
is "$(get "$queue/open")" one open
is "$(get "$queue/open/t=5000")" one reopen
is "$(get "$queue/t=5000")" one get
is "$(get "$queue")" "" empty
is "$(get "${queue}_late/t=20000")" late late
memcrm --servers="$address" "$queue"
memcflush --servers="$address"
memcstat --servers="$address" | grep -q curr_items
memcping --servers="$address"
