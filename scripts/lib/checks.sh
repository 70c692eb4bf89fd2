# shellcheck shell=bash
# Checks of a script that is a test: each a line, and at the end the line that `scripts/test` counts.

checks=0 failures=0

# check CODE TEXT [LOG…]: a check, which failed unless CODE is 0; then it shows the logs.
check() {
    checks=$((checks + 1))
    if (($1)); then
        failures=$((failures + 1))
        echo "FAILED: $2"
        (($# < 3)) || cat "${@:3}"
    else
        echo "ok: $2"
    fi
}

# conclude: the line that counts, and the exit code.
conclude() {
    if ((failures)); then
        echo "$failures of $checks checks failed"
        exit 1
    fi
    echo "$checks checks passed"
}
