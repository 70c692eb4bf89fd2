# shellcheck shell=bash

# apt ARGUMENT…: apt-get, one at a time: where several scripts find something missing, the later ones wait.
apt() {
    # apt's own locks are given up at once, and the lists' have no time to wait at all.
    DEBIAN_FRONTEND=noninteractive flock --close /var/lib/dpkg apt-get "$@"
}
