"""What was compiled for a model: kept by identity, while the model lives and stays the same."""

import weakref


class Kept:
    """A dictionary for each owner, told apart by identity: equal owners do not share.

    >>> class Model:
    ...     def __eq__(self, other):
    ...         return True
    >>> kept, one, two = Kept(), Model(), Model()
    >>> kept.of(one)["graph"] = 1
    >>> kept.of(one), kept.of(two)
    ({'graph': 1}, {})
    """

    def __init__(self):
        self._held = {}

    def of(self, owner):
        key = id(owner)
        held = self._held.get(key)
        if held is None or held[0]() is not owner:
            gone = weakref.ref(owner, lambda ref, key=key: self._drop(key, ref))
            held = self._held[key] = (gone, {})
        return held[1]

    def _drop(self, key, ref):
        if key in self._held and self._held[key][0] is ref:
            del self._held[key]


_texts = Kept()


def renew(model, text):
    """Lets graphs of a model be traced anew where `text`, which describes it, has changed."""
    known = _texts.of(model)
    if known.get("text", text) != text:
        known["version"] = version(model) + 1
    known["text"] = text


def version(model):
    """How often a model has changed since it was first described."""
    return _texts.of(model).get("version", 0)
