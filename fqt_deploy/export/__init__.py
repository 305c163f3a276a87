"""Writing compiled steps in deployable forms."""
