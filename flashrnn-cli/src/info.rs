//! `flashrnn info`: which backends there are, on which devices, with which element types.

use std::io::Write;
use std::thread;

use flashrnn::{Backend, Cpu};

use crate::choice::{BackendName, CellName};

/// Prints one block for each backend.
pub fn main(out: &mut impl Write) -> anyhow::Result<()> {
    let info = Cpu::new().info();
    let dtypes: Vec<String> = info.dtypes.iter().map(ToString::to_string).collect();
    let threads = thread::available_parallelism().map_or_else(|_| "unknown".into(), |n| n.to_string());
    writeln!(out, "flashrnn {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out)?;
    writeln!(out, "backend {}", info.name)?;
    writeln!(out, "  status         found, compiled in")?;
    writeln!(out, "  device         {}", info.device)?;
    writeln!(out, "  threads        {threads}")?;
    writeln!(out, "  element types  {}", dtypes.join(", "))?;
    writeln!(out, "  cells          {}", CellName::ALL.map(|cell| cell.to_string()).join(", "))?;
    writeln!(out)?;
    writeln!(out, "--backend {} picks {}", BackendName::Auto, info.name)?;
    Ok(())
}
