//! What kube-proxy programs.
