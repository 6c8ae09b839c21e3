"""What models are trained for: how a batch is made, the loss, the metrics. One file a task.

A task knows a model only as `apply(params, **inputs) -> output with .logits`; training knows a task only by the
methods `batches`, `loss` and `evaluate`.
"""
