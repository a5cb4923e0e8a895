"""Moves the gates of masks into the weights around them, exactly."""

from tfrobust.shrink.channelwise import Gate


def settle(plan):
    """Folds every mask of the plan into its neighbours; one that does not fit stays as a scale.

    A gate is first pulled back to the layers that make the channels (kernel columns, bias, gamma
    and beta), else pushed on to the layers that read them (kernel rows), in both directions through
    layers that commute with it. Closed gates leave exact zeros behind.

    Args:
        plan: The `Plan` of `compact`.
    """
    for node in plan.graph.nodes:
        mask = plan.rules[node]
        if not isinstance(mask, Gate):
            continue
        moves = _pull(plan, node.inputs[0], mask.gate)
        if moves is None:
            moves = _push(plan, node.outputs[0], mask.gate)
        if moves is not None:
            mask.open()
            for move in moves:
                move()


def _pull(plan, tensor, gate):
    """The folds that make `tensor` come out gated already, or None."""
    node, readers = plan.graph.producer(tensor), plan.graph.consumers(tensor)
    if node is None or plan.is_output(tensor) or len(readers) != 1:
        return None
    if sum(t is tensor for t in readers[0].inputs) != 1:
        return None
    fold = plan.rules[node].absorb_output(gate)
    if fold is not None:
        return [fold]
    gates = plan.rules[node].before(gate)
    if gates is None:
        return None
    pairs = zip(node.inputs, gates, strict=True)
    return _all(_pull(plan, source, g) for source, g in pairs if g is not None)


def _push(plan, tensor, gate):
    """The folds that make all readers of `tensor` behave as if it were gated, or None."""
    if plan.is_output(tensor):
        return None
    moves = []
    for node in plan.graph.consumers(tensor):
        for index, source in enumerate(node.inputs):
            if source is not tensor:
                continue
            fold = plan.rules[node].absorb_input(index, gate)
            if fold is not None:
                moves.append([fold])
                continue
            passed = plan.rules[node].through(index, gate)
            moves.append(None if passed is None else _push(plan, node.outputs[0], passed))
    return _all(moves)


def _all(lists):
    moves = []
    for part in lists:
        if part is None:
            return None
        moves += part
    return moves
