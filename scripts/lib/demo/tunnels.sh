# shellcheck shell=bash
# The tunnels as wg shows them: those that the Gateways ask for, and the ones that status tells of.

gateways=(cloud-1 site-1 box-1)

# domains_by GATEWAY OTHER: whose prefixes it reaches by the other's tunnel; site and box reach each other by the cloud.
domains_by() {
    case $1-$2 in
        site-1-cloud-1) echo 'cloud box' ;;
        box-1-cloud-1) echo 'cloud site' ;;
        cloud-1-cloud-1) ;;
        cloud-1-*) domain_of "$2" ;;
    esac
}

# peers_asked GATEWAY: a line for each of its peers, key and prefixes.
peers_asked() {
    local other domain node prefixes
    for other in "${gateways[@]}"; do
        prefixes=''
        for domain in $(domains_by "$1" "$other"); do
            for node in "${nodes[@]}"; do
                [[ $(domain_of "$node") != "$domain" ]] || prefixes+="${pods4[$node]}.0/24 ${pods6[$node]}::/64 "
            done
        done
        [[ ! $prefixes ]] || echo "$(on "$other" "$corax" key) $(in_order "$prefixes")"
    done | sort
}

# in_order WORDS: sorted, with a blank between them.
in_order() {
    tr -s ' ,' '\n' <<<"$1" | sed '/^$/d' | sort | tr '\n' ' '
}

# peers_shown DUMP: the same of what wg shows.
peers_shown() {
    local key prefixes
    sed 1d <<<"$1" | while IFS=$'\t' read -r key _ _ prefixes _; do
        echo "$key $(in_order "$prefixes")"
    done | sort
}

# ends_differ GATEWAY: endpoints, handshakes and bytes by status, where wg shows others; a handshake within the seconds that it
# took to ask counts as the same, and bytes are those between what wg shows before and after.
ends_differ() {
    local node=$1 before=$EPOCHSECONDS told first dump key endpoint handshake received sent age bytes_in bytes_out said
    first=$(on "$node" wg show raven-wg0 dump | sed 1d)
    told=$(on "$node" "$corax" status -o json |
        jq -r '.tunnels[] | "\(.key) \(.endpoint) \(.handshakeAge) \(.received) \(.sent)"')
    dump=$(on "$node" wg show raven-wg0 dump | sed 1d)
    while IFS=$'\t' read -r key _ endpoint _ handshake received sent _; do
        read -r age bytes_in bytes_out < <(sed -n "s|^$key $endpoint \([0-9]* [0-9]* [0-9]*\)$|\1|p" <<<"$told") || true
        said="$node: wg shows $key at $endpoint"
        if [[ ! $age ]]; then
            echo "$said, status: $told"
        elif ((handshake == 0)); then
            echo "$said without a handshake"
        elif ((handshake < before - age - 2 || handshake > EPOCHSECONDS - age + 2)); then
            echo "$said with a handshake $((EPOCHSECONDS - handshake)) s old, status: $age s"
        elif ! between "$(bytes_of "$key" 6 "$first")" "$bytes_in" "$received"; then
            echo "$said with $received bytes received, status: $bytes_in"
        elif ! between "$(bytes_of "$key" 7 "$first")" "$bytes_out" "$sent"; then
            echo "$said with $sent bytes sent, status: $bytes_out"
        fi
    done <<<"$dump"
    [[ $(wc -l <<<"$told") == "$(wc -l <<<"$dump")" ]] || echo "$node: wg shows $dump, status: $told"
}

# bytes_of KEY FIELD DUMP: a field of a peer; traffic has gone by each.
bytes_of() {
    awk -F '\t' -v key="$1" -v field="$2" '$1 == key { print $field }' <<<"$3"
}

# between LEAST NUMBER MOST: whether it is, and is more than nothing.
between() {
    (($2 > 0 && $1 <= $2 && $2 <= $3))
}

# tunnels_differ: what is not as it should be, a line for each gateway.
tunnels_differ() {
    local node asked shown ends
    for node in "${gateways[@]}"; do
        asked=$(peers_asked "$node")
        shown=$(peers_shown "$(on "$node" wg show raven-wg0 dump)")
        if [[ $shown != "$asked" ]]; then
            echo "$node: wg shows ${shown//$'\n'/; }, the Gateways ask for ${asked//$'\n'/; }"
            continue
        fi
        # Sessions are renewed when they like, between two questions as well.
        for _ in 1 2 3; do
            ends=$(ends_differ "$node")
            [[ $ends ]] || break
        done
        [[ ! $ends ]] || echo "${ends//$'\n'/; }"
    done
}
