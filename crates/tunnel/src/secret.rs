//! Bytes with keys in them.

use zeroize::Zeroizing;

/// Appends. Where there has to be more room, what was in the old one is cleared before it is given back.
pub fn append(secret: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let length = secret.len() + more.len();
    if length > secret.capacity() {
        let mut wider = Zeroizing::new(Vec::with_capacity(length.max(2 * secret.capacity())));
        wider.extend_from_slice(secret);
        *secret = wider;
    }
    secret.extend_from_slice(more);
}
