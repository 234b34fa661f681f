"""What each component does: the method of ``perfit`` over the store of ``perfit_storage``. Nothing here knows kfp."""
