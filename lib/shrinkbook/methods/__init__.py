"""What the papers invented: functions of tensors and modules that open no file and choose no data."""
