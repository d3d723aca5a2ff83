"""Datasets and groups of an HDF5 file that somebody else wrote: of that file alone, as it says.

A link of HDF5 may lead to another file, a dataset may take its bytes from other files (external
storage, virtual datasets), a filter that the library does not know makes it load a plugin from
``HDF5_PLUGIN_PATH``, and a shape costs the file nothing until it is read. None of it is followed.
"""

import h5py

from mace_train.errors import InputError

_BUILT_IN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,  # of h5py
}
_LARGEST_RATIO = 1100  # deflate, the best of these, makes 1032 bytes of one
_FREE = 1 << 20  # bytes that a shape may have without any in the file


class ForeignError(InputError):
    """A file that reaches beyond itself, or says that it is larger than it is."""


def own_group(group: h5py.Group, name: str) -> h5py.Group:
    """The group ``name`` directly in ``group``; KeyError if there is none.

    Raises:
        ForeignError: a link to elsewhere.
    """
    found = _own(group, name)
    if not isinstance(found, h5py.Group):
        raise KeyError(f"{name} is no group")
    return found


def own_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """The dataset ``name`` directly in ``group``; KeyError if there is none.

    Raises:
        ForeignError: its bytes are elsewhere, need a plugin or are fewer than its shape says.
    """
    found = _own(group, name)
    if not isinstance(found, h5py.Dataset):
        raise KeyError(f"{name} is no dataset")
    plan = found.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise ForeignError(_message(found, "takes its bytes from other files"))
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    unknown = sorted(set(filters) - _BUILT_IN_FILTERS)
    if unknown:
        raise ForeignError(_message(found, f"needs a plugin for the filter {unknown[0]}"))
    stored = found.id.get_storage_size()
    if found.nbytes > _FREE + stored * (_LARGEST_RATIO if filters else 1):
        raise ForeignError(_message(found, f"has {found.nbytes} bytes by its shape, {stored} here"))
    return found


def _own(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    if name.encode() not in group.id:
        raise KeyError(f"{name} is not in {group.name}")
    link = group.id.links.get_info(name.encode())
    if link.type != h5py.h5l.TYPE_HARD:
        raise ForeignError(_message(group, f"has a link {name} instead of an array"))
    return group[name]


def _message(item: h5py.HLObject, what: str) -> str:
    return (
        f"{item.file.filename}: {item.name} {what}, which is not followed; where you trust the "
        "file, copy what it holds to a plain one first (h5repack)"
    )
