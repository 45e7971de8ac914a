#!/usr/bin/env bash
# Runs a command and starts it again when it crashes:
#
#   launch/keep_running.sh albef train --config configs/vqa.py --workdir runs/vqa
#
# Exit codes 0 (done) and 2 (a mistake of the user) are final. Anything else is started again after
# PAUSE seconds (30), at most RESTARTS times (10). Signals are passed on as SIGTERM; once the
# command has saved and ended, the exit code is 143, so that whoever restarts jobs (a JobSet, a
# scheduler) does not take a run that was stopped for one that is done.
set -euo pipefail

fail() {
  echo "keep_running.sh: $1" >&2
  exit 2
}

finish() {
  echo "keep_running.sh: ended with exit code $1" >&2
  exit "$1"
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
[[ $# -gt 0 ]] || fail "give the command to run, such as albef train --config C --workdir W"
restarts=${RESTARTS-10} pause=${PAUSE-30}
[[ $restarts =~ ^[0-9]+$ ]] || fail "RESTARTS is '$restarts'; give a whole number"
[[ $pause =~ ^[0-9]+$ ]] || fail "PAUSE is '$pause'; give whole seconds"
if [[ $dry_run ]]; then
  printf '%q ' "$@"
  printf '\n'
  exit
fi

child='' stopped=''
stop() {
  stopped=1
  if [[ $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT HUP QUIT USR1 USR2

for ((left = restarts; ; left--)); do
  "$@" &
  child=$!
  code=0
  wait "$child" || code=$?
  if [[ $stopped ]]; then
    # The first wait ended with the signal, not with the command.
    wait "$child" || true
    finish 143
  fi
  if [[ $code == 0 || $code == 2 || $left == 0 ]]; then finish "$code"; fi
  child=''
  echo "keep_running.sh: exit code $code; starting again in $pause s ($left left)" >&2
  # In the background, so that a signal is heard at once.
  sleep "$pause" &
  wait $! || true
  if [[ $stopped ]]; then finish 143; fi
done
