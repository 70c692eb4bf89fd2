mod process;
mod wire;
