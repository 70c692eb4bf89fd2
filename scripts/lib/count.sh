# shellcheck shell=bash
# Counting the tests of a log.

# count LOG: passed and failed tests, by the summaries of cargo test, and of our own scripts.
count() {
    awk '
        /^test result: / {
            for (i = 1; i < NF; i++) {
                if ($(i + 1) ~ /^passed/) passed += $i
                if ($(i + 1) ~ /^failed/) failed += $i
            }
        }
        /^[0-9]+ checks passed$/ { passed += $1 }
        /^[0-9]+ of [0-9]+ checks failed$/ { failed += $1; passed += $3 - $1 }
        # The sum of a script that runs tests of its own.
        /^[0-9]+ passed, [0-9]+ failed$/ { own = 1; own_passed = $1; own_failed = $3 }
        END { if (own) print own_passed, own_failed; else print passed + 0, failed + 0 }' "$1"
}
