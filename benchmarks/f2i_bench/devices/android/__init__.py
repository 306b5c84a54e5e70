"""Android devices over adb."""
