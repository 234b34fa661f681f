"""What each component does: the round of ``perfit`` over the store of ``perfit_storage``, without kfp."""
