# shellcheck shell=bash
# What scripts say to a person: steps, marks, errors. Colours only on a terminal.

# shellcheck disable=SC2034  # not every script uses every colour
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]] || [[ -n ${CORAX_COLOUR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' yellow='' plain=''
fi

# die TEXT…: an error, and the end.
die() {
    printf '%s%s: %s%s\n' "$red" "${0##*/}" "$*" "$plain" >&2
    exit 1
}

# step TEXT…: what is being done, with the seconds since the script began. Nothing where $quiet is set.
step() {
    [[ -n ${quiet:-} ]] || printf '%s%5s s%s  %s\n' "$dim" "$(seconds)" "$plain" "$*"
}

# seconds: how long the script runs, with one decimal.
seconds() {
    local now=${EPOCHREALTIME/[.,]/} then=${began/[.,]/}
    printf '%d.%d' $(((now - then) / 1000000)) $(((now - then) / 100000 % 10))
}

began=${CORAX_BEGAN:-$EPOCHREALTIME}
