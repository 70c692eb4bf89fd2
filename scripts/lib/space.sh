# shellcheck shell=bash
# Network namespaces that live as long as a process does. To be used by process 1 of a process namespace: when that
# ends, in whatever way, all of them end.

# Process that holds a space, by the space's name.
declare -A holder=()

# space NAME: a network namespace.
space() {
    hold "$1" true
}

# machine NAME: a network namespace with directories of its own where daemons keep their state.
machine() {
    # shellcheck disable=SC2016
    hold "$1" 'mkdir -p /run/corax /run/wireguard &&
        for dir in /run/corax /run/wireguard /var/lib; do mount -t tmpfs tmpfs $dir; done && mount -t sysfs sysfs /sys' \
        --mount --propagation private
}

hold() {
    local name=$1 prepare=$2 ready
    shift 2
    # Addresses are at once what they are: without duplicate address detection.
    local begin='echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad && echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
    exec {ready}< <(exec unshare --net "$@" sh -c "ip link set lo up; $begin; $prepare && echo && exec sleep infinity")
    holder[$name]=$!
    read -r -u "$ready" || die "no namespace for $name"
    exec {ready}<&-
}

# on NAME COMMAND…: runs a command in a space, as that command's own process.
on() {
    local pid=${holder[$1]}
    shift
    nsenter --target "$pid" --net --mount -- "$@"
}

# lines NAME: reads what `ip -batch` reads and does it in a space. `@NAME` stands for another space.
lines() {
    local pid=${holder[$1]} text name
    text=$(cat)
    while [[ $text =~ @([a-z0-9-]+) ]]; do
        name=${BASH_REMATCH[1]}
        text=${text/"@$name"//proc/${holder[$name]}/ns/net}
    done
    nsenter --target "$pid" --net -- ip -batch - <<<"$text"
}

# settings NAME KEY=VALUE…: sysctls below net, with slashes.
settings() {
    local name=$1
    shift
    # shellcheck disable=SC2016
    on "$name" sh -c 'for pair; do echo "${pair#*=}" >"/proc/sys/net/${pair%%=*}"; done' sh "$@"
}
