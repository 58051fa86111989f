package cluster

import "syscall"

// Pause stops a node's process where it is (SIGSTOP); its connections stay open.
func (c *Cluster) Pause(nodeID int) error { return c.signal(nodeID, syscall.SIGSTOP, "paused a node") }

// Resume lets a paused node go on.
func (c *Cluster) Resume(nodeID int) error {
	return c.signal(nodeID, syscall.SIGCONT, "resumed a node")
}

func (c *Cluster) signal(nodeID int, sig syscall.Signal, text string) error {
	n, err := c.node(nodeID)
	if err != nil {
		return err
	}
	n.Process.signal(sig)
	c.log.Info(text, "node", nodeID)
	return nil
}

// Pause stops the mount's daemon where it is (SIGSTOP): calls into the mount wait.
func (m *Mount) Pause() {
	m.Process.signal(syscall.SIGSTOP)
	m.c.log.Info("paused a mount", "point", m.Point)
}

// Resume lets a paused daemon go on.
func (m *Mount) Resume() {
	m.Process.signal(syscall.SIGCONT)
	m.c.log.Info("resumed a mount", "point", m.Point)
}
