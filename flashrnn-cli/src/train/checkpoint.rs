//! The checkpoint: a safetensors file with the parameters and the description of the network.
//!
//! The file's metadata has one entry, `flashrnn`, which is a JSON object with `format`, `cell`,
//! `layers`, `heads`, `head_dim` and `vocabulary`, a string of all known characters in the order of
//! their indices. There is only one entry because the order of several is unspecified, and the same
//! network should be serialised to the same bytes.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use clap::ValueEnum;
use flashrnn::AnyBackend;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::model::{LanguageModel, Sizes};
use super::text::Vocabulary;
use crate::choice::CellName;

/// The name of the metadata entry.
const ENTRY: &str = "flashrnn";
/// Identifies the kind of file and its version.
const FORMAT: &str = "character language model 2";

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Description {
    format: String,
    cell: String,
    layers: usize,
    heads: usize,
    head_dim: usize,
    vocabulary: String,
}

/// A network loaded from a file.
pub struct Checkpoint {
    pub sizes: Sizes,
    pub vocabulary: Vocabulary,
    pub model: LanguageModel,
}

/// Serialises a network.
pub fn serialize(
    sizes: &Sizes,
    vocabulary: &Vocabulary,
    parameters: &[(String, Var)],
) -> Result<Vec<u8>> {
    let description = serde_json::to_string(&Description {
        format: FORMAT.to_owned(),
        cell: sizes.cell.to_string(),
        layers: sizes.layers,
        heads: sizes.heads,
        head_dim: sizes.head_dim,
        vocabulary: vocabulary.to_text(),
    })?;
    let metadata = HashMap::from([(ENTRY.to_owned(), description)]);
    let tensors = parameters.iter().map(|(name, var)| (name, var.as_tensor()));
    safetensors::serialize(tensors, Some(metadata)).context("can't serialise the checkpoint")
}

/// Loads a file written by [`serialize`].
pub fn load(path: &Path, backend: &AnyBackend) -> Result<Checkpoint> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("can't read the checkpoint {}", path.display()))?;
    parse(&bytes, backend).with_context(|| format!("the checkpoint {} is invalid", path.display()))
}

fn parse(bytes: &[u8], backend: &AnyBackend) -> Result<Checkpoint> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().as_ref().context("it has no metadata")?;
    let description =
        metadata.get(ENTRY).with_context(|| format!("its metadata has no entry {ENTRY:?}"))?;
    let Description { format, cell, layers, heads, head_dim, vocabulary } =
        serde_json::from_str(description)?;
    if format != FORMAT {
        bail!("its format is {format:?}, wanted {FORMAT:?}");
    }
    let Ok(cell) = CellName::from_str(&cell, false) else { bail!("its cell {cell:?} is unknown") };
    let vocabulary = Vocabulary::of(&vocabulary);
    let sizes = Sizes { cell, layers, heads, head_dim, vocabulary: vocabulary.len() };
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = LanguageModel::new(&sizes, backend, &vb)?;
    Ok(Checkpoint { sizes, vocabulary, model })
}

#[cfg(test)]
mod tests {
    use flashrnn::Cpu;

    use super::*;
    use crate::train::model::{Dropout, Parameters};

    #[test]
    fn checkpoints_round_trip() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("c.safetensors");
        let vocabulary = Vocabulary::of("salvé\n\"");
        let sizes = Sizes {
            cell: CellName::Gru,
            layers: 2,
            heads: 2,
            head_dim: 3,
            vocabulary: vocabulary.len(),
        };
        let parameters = Parameters::seeded(1);
        let model =
            LanguageModel::new(&sizes, &AnyBackend::Cpu(Cpu::new()), &parameters.builder())?;
        std::fs::write(&path, serialize(&sizes, &vocabulary, &parameters.all())?)?;
        let back = load(&path, &AnyBackend::Cpu(Cpu::new()))?;
        assert_eq!((back.sizes, &back.vocabulary), (sizes, &vocabulary));
        let tokens = Tensor::new(&[[0u32, 1, 2]], &Device::Cpu)?;
        let logits = |model: &LanguageModel| -> Result<Vec<f32>> {
            let (logits, _) =
                model.forward(&tokens, &model.initial_state(), None, &mut Dropout::off())?;
            Ok(logits.flatten_all()?.to_vec1()?)
        };
        assert_eq!(logits(&model)?, logits(&back.model)?);

        let bytes = std::fs::read(&path)?;
        for cut in [0, 7, 100, bytes.len() - 1] {
            assert!(parse(&bytes[..cut], &AnyBackend::Cpu(Cpu::new())).is_err(), "{cut}");
        }
        assert!(load(&folder.path().join("none"), &AnyBackend::Cpu(Cpu::new())).is_err());
        Ok(())
    }
}
