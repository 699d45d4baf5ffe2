"""Reading a state dict and putting it into a module without holding the weights twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from kit.errors import InvalidSetting, KitError, WeightsFileError
from kit.handlers import archives, paths

#: Below this many bytes a plain build and copy is quicker than the checks of the other way.
LARGE_BYTES = 32 << 20


def read(path: str, device: Any, load_args: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file of ``torch.save(model.state_dict(), path)`` or a .safetensors file.

    Raises:
        WeightsFileError: missing, corrupt, or something other than tensors by name.
        InvalidSetting: `load_args` for a .safetensors file, which takes none.
    """
    import torch

    with paths.local_file(path) as local:
        if local.endswith(".safetensors"):
            return _read_safetensors(path, local, device, load_args)
        archives.check(path, local, "weights file")
        if archives.is_torch_script(local):
            raise WeightsFileError(
                f"The file {path!r} was given as state_dict_path and is a TorchScript model: give "
                f"torch_script_model_path={path!r} in place of state_dict_path and model_class."
            )
        arguments = {"map_location": device, **load_args, "weights_only": True}
        try:
            state = torch.load(local, **arguments)
        except (KitError, MemoryError):
            raise
        except Exception as error:
            advised = (
                "weights_only" in str(error).lower()
            )  # torch advises to switch it off, which is for nobody to read
            raise WeightsFileError(_unreadable(path, error)) from (None if advised else error)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise WeightsFileError(
            f"The weights file {path!r} holds a {type(state).__name__}, not tensors by name: "
            "save torch.save(model.state_dict(), path)."
        )
    return state  # type: ignore[return-value]


def _unreadable(path: str, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    if "weights_only" in str(error).lower():
        return (
            f"The weights file {path!r} is corrupt or holds Python objects, which are never loaded: "
            "save torch.save(model.state_dict(), path)."
        )
    return f"The weights file {path!r} can't be read, it may be corrupt: {type(error).__name__}: {first}"


def _read_safetensors(path: str, local: str, device: Any, load_args: Mapping[str, Any]) -> dict[str, Any]:
    if set(load_args) - {"weights_only", "map_location"}:
        raise InvalidSetting(f"load_model_args={dict(load_args)!r}: a .safetensors file takes none.")
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise paths.needs("safetensors") from error
    try:
        with safe_open(local, framework="pt", device=str(load_args.get("map_location", device))) as file:
            # Copied out of the mapped file: a file that is overwritten later must not change or kill a model.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except MemoryError:
        raise
    except Exception as error:
        raise WeightsFileError(_unreadable(path, error)) from error


def build(make: Callable[[], Any], state: dict[str, Any], path: str, title: str) -> Any:
    """A module made by `make`, with the weights of `state`.

    A large module is built without memory for its weights and takes the tensors of `state` as they
    are, when it is certain that nothing else of it depends on weights at construction. Otherwise
    it's built as usual and the weights are copied.

    Raises:
        WeightsFileError: the names or shapes don't fit.
        InvalidSetting: `make` fails, or doesn't make a torch.nn.Module.
    """
    import torch

    if sum(tensor.nbytes for tensor in state.values() if isinstance(tensor, torch.Tensor)) >= LARGE_BYTES:
        module = _build_empty(make, state)
        if module is not None:
            return module
    try:
        module = make()
    except Exception as error:
        raise InvalidSetting(f"{title} can't be made: {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise InvalidSetting(f"{title} made a {type(module).__name__}, not a torch.nn.Module: check model_class.")
    try:
        result = module.load_state_dict(state, strict=False)
    except Exception as error:
        raise WeightsFileError(_misfit(module, state, path, title) or f"{path!r}: {error}") from error
    if _missing(module, result.missing_keys) or result.unexpected_keys:
        raise WeightsFileError(_misfit(module, state, path, title, result))
    return module


def _build_empty(make: Callable[[], Any], state: dict[str, Any]) -> Any:
    """The module built on the meta device and filled, or None when that isn't certain to be right."""
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.overrides import TorchFunctionMode

    storages: list[Any] = []

    class Watch(TorchFunctionMode):
        """Notes the storage of every meta tensor that the constructor makes."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            for value in output if isinstance(output, (tuple, list)) else (output,):
                if isinstance(value, torch.Tensor) and value.is_meta:
                    storages.append(StorageWeakRef(value.untyped_storage()))
            return output

    try:
        with torch.device("meta"), Watch():
            module = make()
        ties = _ties(module)
        result = module.load_state_dict(_cast(module, state), strict=False, assign=True)
    except Exception:
        # Constructors may read weights, which a meta tensor has none of; the usual way reports what is really wrong.
        return None
    if result.unexpected_keys or set(result.missing_keys) - _tied_names(ties, result.missing_keys):
        return None
    _tie_again(module, ties, set(result.missing_keys))
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return None
    # A storage still alive is used by something that load_state_dict didn't replace: a table, a view, an alias.
    return module if all(storage.expired() for storage in storages) else None


def _cast(module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """`state` in the module's dtypes, which copying would give and assigning doesn't."""
    wanted = module.state_dict(keep_vars=True)
    cast = state.copy()
    for name, tensor in state.items():
        target = wanted.get(name)
        if hasattr(target, "dtype") and hasattr(tensor, "dtype") and tensor.dtype != target.dtype:
            cast[name] = tensor.to(target.dtype)
    if hasattr(state, "_metadata"):
        # torch notes in it that tensors are assigned, which a later load that copies would obey.
        cast._metadata = copy.deepcopy(state._metadata)  # type: ignore[attr-defined]
    return cast


def _ties(module: Any) -> list[list[str]]:
    """Groups of names of one and the same parameter or buffer."""
    groups: dict[int, list[str]] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tied_names(ties: list[list[str]], missing: list[str]) -> set[str]:
    """Missing names whose weights are in the file under another name of the same parameter."""
    gone = set(missing)
    return {name for names in ties if not gone.issuperset(names) for name in names}


def _missing(module: Any, missing: list[str]) -> list[str]:
    tied = _tied_names(_ties(module), missing)
    return [name for name in missing if name not in tied]


def _tie_again(module: Any, ties: list[list[str]], missing: set[str]) -> None:
    for names in ties:
        # The last one loaded wins, as it does when each is copied into the one parameter.
        source = [name for name in names if name not in missing][-1]
        parent, _, leaf = source.rpartition(".")
        tensor = getattr(module.get_submodule(parent), leaf)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, tensor)


def _misfit(module: Any, state: Mapping[str, Any], path: str, title: str, result: Any = None) -> str:
    """What doesn't fit, in one sentence; empty when the names and shapes do."""
    wanted = module.state_dict()
    missing = _missing(module, result.missing_keys if result else [name for name in wanted if name not in state])
    unexpected = result.unexpected_keys if result else [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {list(state[name].shape)} in the file and {list(value.shape)} in the model"
        for name, value in wanted.items()
        if name in state and hasattr(value, "shape") and getattr(state[name], "shape", None) != value.shape
    ]
    parts = [
        f"{label} {_some(names)}"
        for label, names in (("missing in the file:", missing), ("not in the model:", unexpected), ("shapes:", shapes))
        if names
    ]
    if not parts:
        return ""
    hint = ""
    nested = [name for name in unexpected if isinstance(state[name], Mapping)]
    if nested:
        hint = f" {nested[0]!r} is a dict itself: save only that state dict to a file."
    found = "; ".join(parts)
    return f"The weights file {path!r} doesn't fit {title}: {found}. Check model_class and model_params.{hint}"


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
