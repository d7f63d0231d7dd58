"""`convert`: puts this package's modules in the place of PyTorch's."""

from __future__ import annotations

from typing import Any

from torch import nn

from flashrnn_rs.modules import GRU, LSTM, RNN

__all__ = ["convert"]

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}


def convert(model: nn.Module) -> nn.Module:
    """Replaces every `nn.LSTM`, `nn.GRU` and `nn.RNN` in a model by this package's, in place.

    The new modules hold the same parameters, so that weights stay tied and optimizers keep working,
    and the same hooks. Cells such as `nn.LSTMCell` stay as they are.

    Args:
        model: Any module; if it is an `nn.LSTM` itself, nothing happens in place.

    Returns:
        The model, or the module that replaces it.

    Raises:
        ValueError: A module can't be replaced without changing what it does. The message names it
            and says why; the model is as it was.
    """
    replaced = {
        module: _replacement(module, path or "model")
        for path, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    }
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.RNNBase):
                parent._modules[name] = replaced[child]
    return replaced.get(model, model) if isinstance(model, nn.RNNBase) else model


def _replacement(module: nn.RNNBase, path: str) -> nn.Module:
    """Returns the module that does what `module` does, with its parameters and hooks."""

    def refuse(why: str) -> ValueError:
        return ValueError(f"{path}: can't be converted: {why}")

    if type(module) not in _CLASSES:
        raise refuse(f"it is a {type(module).__qualname__}, which may do something else")
    if module.proj_size:
        raise refuse(f"it has projections (proj_size {module.proj_size})")
    own = vars(module)
    options: dict[str, Any] = {"nonlinearity": own["nonlinearity"]} if "nonlinearity" in own else {}
    new = _CLASSES[type(module)](
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=module.bias,
        batch_first=module.batch_first,
        dropout=module.dropout,
        bidirectional=module.bidirectional,
        device="meta",
        **options,
    )
    if module._parameters.keys() != new._parameters.keys() or module._buffers or module._modules:
        raise refuse("its parameters are not PyTorch's own; remove parametrizations first")
    if any(
        getattr(hook, "with_module", False) for hook in module._load_state_dict_pre_hooks.values()
    ):
        raise refuse("it has a hook for load_state_dict that is bound to it")
    new._parameters.update(module._parameters)
    for name, value in own.items():
        # A handle of a hook removes it from the dictionary that both modules now share.
        is_hook = "_hooks" in name or name == "_is_full_backward_hook"
        if is_hook or (not name.startswith("_") and name not in vars(new)):
            setattr(new, name, value)
    new.training = module.training
    return new
