"""What each component does: the round of ``perfit`` over the store of ``perfit_storage``. Nothing here knows kfp."""
