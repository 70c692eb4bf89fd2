//! The command line, which is wireguard-go's with switches added.

use crate::error::Error;

/// Options of `corax tunnel`; the same command line as `wireguard-go [-f|--foreground] INTERFACE-NAME`.
///
/// The switches that begin with `no` give up something the kernel offers; each is found out at run time anyway, so they are
/// for tests and for kernels that promise what they do not keep.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Name of the TUN device to make; its control socket is /var/run/wireguard/NAME.sock
    #[arg(value_parser = device_name)]
    pub name: String,
    /// Stay in the foreground and log to standard error, as much as LOG_LEVEL says: verbose, info, error or silent
    #[arg(short, long, env = "WG_PROCESS_FOREGROUND", value_parser = clap::builder::FalseyValueParser::new())]
    pub foreground: bool,
    /// Threads; peers are spread over them, a flow never
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,
    /// No virtio header on the TUN device: one packet a read and a write
    #[arg(long, help_heading = "Offloads")]
    pub no_vnet: bool,
    /// Let the kernel cut TCP before the TUN device, and join none; no UDP either, which the kernel has with TCP only
    #[arg(long, help_heading = "Offloads")]
    pub no_tso: bool,
    /// Let the kernel cut UDP before the TUN device, and join none
    #[arg(long, help_heading = "Offloads")]
    pub no_uso: bool,
    /// Write packets to the TUN device one by one
    #[arg(long, help_heading = "Offloads")]
    pub no_join: bool,
    /// Send datagrams one by one (no UDP_SEGMENT)
    #[arg(long, help_heading = "Offloads")]
    pub no_gso: bool,
    /// Receive datagrams one by one (no UDP_GRO)
    #[arg(long, help_heading = "Offloads")]
    pub no_gro: bool,
    /// What the kernel would answer where an offload fails
    #[arg(long, hide = true)]
    pub fail: Option<Failure>,
}

/// A failure of an offload while it is used, for tests of the fallbacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Failure {
    /// EIO for datagram trains to whoever gets the first one
    Eio,
    /// EMSGSIZE for them
    Emsgsize,
    /// EINVAL for them
    Einval,
    /// EINVAL for joined TCP written to the TUN device
    JoinedTcp,
    /// EINVAL for joined UDP written to the TUN device
    JoinedUdp,
}

impl Failure {
    /// The errno of datagram trains.
    pub(crate) fn of_trains(self) -> Option<i32> {
        match self {
            Self::Eio => Some(libc::EIO),
            Self::Emsgsize => Some(libc::EMSGSIZE),
            Self::Einval => Some(libc::EINVAL),
            Self::JoinedTcp | Self::JoinedUdp => None,
        }
    }
}

impl Options {
    /// The options for device `name` that a plain command line gives, in the foreground.
    #[must_use]
    pub fn foreground(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            foreground: true,
            threads: 1,
            no_vnet: false,
            no_tso: false,
            no_uso: false,
            no_join: false,
            no_gso: false,
            no_gro: false,
            fail: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        device_name(&self.name).map(drop)
    }
}

/// A name that the kernel takes for a device.
fn device_name(name: &str) -> Result<String, Error> {
    let good = (1..16).contains(&name.len())
        && !name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace())
        && !matches!(name, "." | "..");
    if good { Ok(name.to_owned()) } else { Err(Error::Name(name.to_owned())) }
}
