"""Generated from hospital.proto by `python -m wardround_client.service._proto.generate`; do not edit by hand."""
