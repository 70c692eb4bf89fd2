//! The agent's files in directories that somebody else may empty: looked for each minute, and made again.

use std::path::{Path, PathBuf};

use corax_core::problem::Problem;
use tracing::info;

use super::alone::{self, Claim};
use crate::state;
use crate::wireguard::key::{self, Loaded, PrivateKey};

/// The claim of the network namespace, and the key.
pub(crate) struct Files {
    claim: Option<Claim>,
    /// Why there is no claim.
    unclaimed: Option<Problem>,
    state: PathBuf,
    key: PrivateKey,
    /// What is wrong with the key's file.
    unkept: Option<key::Error>,
}

impl Files {
    /// Claims the network namespace. A node whose run directory cannot be written to is better served by an agent than by none.
    ///
    /// # Errors
    /// Where somebody else has it.
    pub(crate) fn claim() -> Result<(Option<Claim>, Option<Problem>), alone::Error> {
        match Claim::take(Path::new(corax_cni::RUN), "an agent") {
            Ok(claim) => Ok((Some(claim), None)),
            Err(held @ alone::Error::Held(_)) => Err(held),
            Err(error @ alone::Error::Io { .. }) => {
                let what =
                    format!("cannot be claimed: {error}; whether a second agent runs in it is not known");
                let remedy = format!("make {} writable", corax_cni::RUN);
                Ok((None, Some(Problem::new("the network namespace", what, remedy))))
            }
        }
    }

    /// What there is at start.
    pub(crate) fn new(
        (claim, unclaimed): (Option<Claim>, Option<Problem>),
        state: &Path,
        loaded: Loaded,
    ) -> Self {
        let Loaded { key, problem, .. } = loaded;
        Self { claim, unclaimed, state: state.to_owned(), key, unkept: problem }
    }

    /// Makes again what is gone.
    pub(crate) fn look(&mut self) {
        if !self.claim.as_ref().is_some_and(Claim::stands) {
            match Self::claim() {
                // The old one goes only now: it is nobody else's file.
                Ok((claim, unclaimed)) => (self.claim, self.unclaimed) = (claim, unclaimed),
                Err(held) => {
                    let remedy = "stop one of the two: each undoes what the other does";
                    self.unclaimed = Some(Problem::new("the network namespace", held.to_string(), remedy));
                }
            }
        }
        if !self.state.is_dir() {
            // What is wrong with it is told for the key.
            drop(state::prepare(&self.state));
        }
        match key::restore(&self.state, &self.key) {
            Ok(restored) => {
                if restored {
                    info!(directory = %self.state.display(), "the WireGuard key is there again");
                }
                if restored || matches!(&self.unkept, Some(key::Error::NotKept { .. })) {
                    self.unkept = None;
                }
            }
            Err(error) => self.unkept = Some(error),
        }
    }

    /// What is wrong with them.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.unclaimed.clone().into_iter().chain(self.unkept.as_ref().map(key::Error::problem))
    }
}
