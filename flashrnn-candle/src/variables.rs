//! Parameters of a file as variables.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Var, safetensors};
use candle_nn::{VarBuilder, VarMap};

/// Loads every tensor of a safetensors file as a variable of type `dtype`.
///
/// Returns the variables, to train and save, and a builder of modules over them. Unlike
/// [`VarBuilder::from_varmap`], the builder creates no variables, so a module that needs a
/// parameter that the file lacks is an error. Unlike [`VarMap::load`], nothing in the file is
/// ignored, so [`Rnn::from_torch`](crate::Rnn::from_torch) finds parameters that its configuration
/// leaves out.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use flashrnn_candle::{Lstm, RnnConfig, load_variables};
///
/// # fn main() -> candle_core::Result<()> {
/// let (vars, vb) = load_variables("lstm.safetensors", DType::F32, &Device::Cpu)?;
/// let lstm = Lstm::from_torch(8, 32, RnnConfig::default(), vb)?;
/// // Train vars.all_vars().
/// vars.save("tuned.safetensors")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the file can't be read, or memory runs out.
pub fn load_variables(
    path: impl AsRef<Path>,
    dtype: DType,
    device: &Device,
) -> Result<(VarMap, VarBuilder<'static>)> {
    let path = path.as_ref();
    let tensors = safetensors::load(path, device)
        .map_err(|error| error.context(format!("can't load {}", path.display())))?;
    let vars = VarMap::new();
    let mut found = HashMap::new();
    {
        let mut data = vars.data().lock().map_err(|_| Error::msg("flashrnn: a poisoned lock"))?;
        for (name, tensor) in tensors {
            let var = Var::from_tensor(&tensor.to_dtype(dtype)?)?;
            found.insert(name.clone(), var.as_tensor().clone());
            data.insert(name, var);
        }
    }
    // A builder of tensors that have its type and device returns the variables themselves.
    Ok((vars, VarBuilder::from_tensors(found, dtype, device)))
}
