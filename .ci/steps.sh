# shellcheck shell=bash
# Steps with a log each, and the sum of what they counted. Sourced by .ci/run.
: "${work:?the directory of the run}"

passed=0 failed=0
report=()

# step NAME COMMAND..: runs it in a subshell, shows its output and counts its tests. Never fails itself.
step() {
  local name="$1" log="$work/step.log" started=$SECONDS status=0 ok bad
  shift
  printf '\n=== %s\n' "$name"
  # a subshell with -e of its own: inside an `if` or `||` bash would ignore it
  set +e
  (
    set -e
    "$@"
  ) 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  set -e
  read -r ok bad < <(counts "$log")
  if ((status != 0 && bad == 0)); then bad=1; fi
  passed=$((passed + ok)) failed=$((failed + bad))
  report+=("$(printf '%-34s %5s passed %3s failed %5ss%s' "$name" "$ok" "$bad" $((SECONDS - started)) \
    "$( ((status == 0)) || echo "   FAILED, exit $status")")")
}

skipped() {
  printf '\n=== %s: SKIPPED (%s)\n' "$1" "$2"
  report+=("$(printf 'SKIPPED %s: %s' "$1" "$2")")
}

# "passed failed" in a log, from the last line of pytest ("== 3 failed, 40 passed, 1 error in 5.0s ==") and the one of
# pg_prove ("Files=3, Tests=40, ..", with "Failed 2/40 subtests" for each bad file).
counts() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    / in [0-9.]+s/ && /(passed|failed|error|errors)[, ]/ {
      ok = bad = 0
      for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) ok = $(i - 1)
        if ($i ~ /^(failed|errors?)/) bad += $(i - 1)
      }
    }
    match($0, /^Files=[0-9]+, Tests=[0-9]+/) { split($0, f, /[=,]/); tests = f[4] }
    match($0, /Failed [0-9]+\/[0-9]+ subtests/) { split(substr($0, RSTART + 7), f, "/"); subtests += f[1] }
    END { if (subtests > tests) tests = subtests; print ok + tests - subtests, bad + subtests }'
}

# Prints the table, then the one line; the exit status of the run.
summary() {
  printf '\n=== summary (%s s)\n' "$SECONDS"
  printf '%s\n' "${report[@]}"
  printf '%s passed, %s failed\n' "$passed" "$failed"
  ((failed == 0))
}
