# shellcheck shell=bash
# Inside a guest: waiting for what must become true.

# await SECONDS COMMAND…: until it succeeds. Where it has not, and the guest is slower than usual, that much longer.
await() {
    local limit=$1 until=$((SECONDS + $1)) longer
    shift
    until "$@"; do
        if ((SECONDS >= until)); then
            longer=$((until + limit * ($(pace) - 1)))
            ((SECONDS < longer)) || return 1
            # Measured once.
            limit=0 until=$longer
        fi
        sleep 0.1
    done
}
