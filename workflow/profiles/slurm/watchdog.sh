#!/usr/bin/env bash
# Ends a Snakemake that waits for jobs which no longer exist, and starts it again.
#
#   workflow/profiles/slurm/watchdog.sh snakemake --profile workflow/profiles/slurm ...
#
# Without an accounting database, an outage of Slurm's controller can make the plugin miss that a job
# has ended, and Snakemake then waits for ever without a word. The sign of it: Snakemake lives, Slurm
# answers, and none of your Snakemake jobs is queued or running, for longer than a local rule takes.
# A second run of Snakemake under the same user hides that sign. What was finished stays finished.
set -mu

minutes=${WATCHDOG_MINUTES:-20} # without a job, before a restart
pause=${WATCHDOG_SECONDS:-60}   # between two looks

queued() { squeue -h -u "$(id -un)" -o %k; } # comments: the plugin's begin with rule_

while true; do
  "$@" &
  child=$!
  quiet=0
  while kill -0 "$child" 2>/dev/null; do
    sleep "$pause"
    if ! comments=$(queued 2>/dev/null) || grep -q '^rule_' <<<"$comments"; then
      quiet=0
    else
      quiet=$((quiet + pause))
    fi
    if [ "$quiet" -gt 0 ] && [ "$quiet" -ge $((minutes * 60)) ] && kill -0 "$child" 2>/dev/null; then
      echo "watchdog: no job for $minutes minutes; Snakemake is started again" >&2
      kill -INT -- "-$child"
      for _ in $(seq 30); do
        kill -0 "$child" 2>/dev/null && sleep 1
      done
      kill -KILL -- "-$child" 2>/dev/null
      wait "$child" 2>/dev/null
      "$@" --unlock
      continue 2
    fi
  done
  wait "$child"
  exit $?
done
