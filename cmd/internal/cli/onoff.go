package cli

// OnOff is a flag that is spelled on or off.
type OnOff bool

// String is on or off.
func (o *OnOff) String() string {
	if *o {
		return "on"
	}
	return "off"
}

// Set reads on or off.
func (o *OnOff) Set(text string) error {
	if text != "on" && text != "off" {
		return Usage("", "want on or off, not %q", text)
	}
	*o = text == "on"
	return nil
}

// Type is what help calls the value.
func (o *OnOff) Type() string { return "on|off" }
