package test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/claudefs/claudefs/cfs"
	"github.com/claudefs/claudefs/client"
	"github.com/claudefs/claudefs/cluster"
	"github.com/claudefs/claudefs/pki"
	"github.com/claudefs/claudefs/wire"
	"github.com/claudefs/claudefs/wire/wirepb"
)

// cfsSays runs cfs and returns what it prints, and what it complains of.
func cfsSays(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// refused wants cfs to fail with one line that says why, and nothing else.
func refused(t *testing.T, why string, args ...string) {
	t.Helper()
	out, errs, err := cfsSays(t, args...)
	if err == nil || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, why) {
		t.Errorf("cfs %s: %v, printed %q and complained %q; want one line with %q", strings.Join(args, " "), err, out, errs, why)
	}
}

// done wants cfs to succeed.
func done(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := cfsSays(t, args...)
	if err != nil {
		t.Fatalf("cfs %s: %v: %s", strings.Join(args, " "), err, errs)
	}
	return strings.TrimSpace(out)
}

// startSigned is a cluster whose authority the test has too.
func startSigned(t *testing.T) (*cluster.Cluster, cfs.CA) {
	t.Helper()
	const id = "local-signed"
	ca, err := pki.NewAuthority(id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store, err := pki.OpenStore(filepath.Join(t.TempDir(), "authority"))
	if err == nil {
		err = store.SaveAuthority(&ca)
	}
	if err != nil {
		t.Fatal(err)
	}
	return start(t, func(s *cluster.Spec) { s.TLS, s.ClusterID, s.Authority = true, id, store.Dir() }), ca
}

// identity is a store with a certificate that somebody signed.
func identity(t *testing.T, ca, shown *cfs.CA, who cfs.Principal, at time.Time, life time.Duration) *pki.Store {
	t.Helper()
	store, err := pki.OpenStore(filepath.Join(t.TempDir(), "id"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Sign(ca, pki.Request{Who: who, Name: "test", PublicKey: key, Lifetime: life}, at)
	if err == nil {
		err = store.Save(cert, shown.Cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// statusBy asks every node for its status with an identity, and wants each to answer as want says.
func statusBy(t *testing.T, c *cluster.Cluster, what string, security *wire.TLS, want string) {
	t.Helper()
	for _, addr := range c.Addrs() {
		err := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := wire.Dial(ctx, addr, wire.DialConfig{Hello: wire.Identity{Name: "test"}, DialTimeout: patience, TLS: security})
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Call(ctx, wire.OpStatus, &wirepb.Empty{}, nil, &wirepb.StatusReply{}, nil)
			return err
		}()
		if want == "" && err != nil {
			t.Errorf("%s at %s: %v", what, addr, err)
		}
		if want != "" && (cfs.KindOf(err) != cfs.Denied || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s at %s: %v, want one line with %q", what, addr, err, want)
		}
	}
}

// A cluster with certificates: who has a token is let in once; who has none, or a bad certificate, is
// told so in one line by every server and gets nothing.
func TestTLS(t *testing.T) {
	c, ca := startSigned(t)
	sock := c.SocketAddr(2)
	kept := filepath.Join(c.Dir(), "node-1", "data", "identity", "ca")
	eventually(t, "node 1 has removed the authority's key", func() bool {
		_, err := os.Stat(kept + "-key.pem")
		return errors.Is(err, os.ErrNotExist)
	})
	if _, err := os.Stat(kept + ".pem"); err != nil {
		t.Errorf("the authority's certificate is gone too: %v", err)
	}
	status := done(t, "admin", "status", "--server", sock)
	if !strings.Contains(status, "TLS, CA fingerprint") {
		t.Errorf("the status says nothing of certificates:\n%s", status)
	}
	m := mount(t, c, "mnt")
	if err := os.WriteFile(filepath.Join(m.Point, "file"), []byte("by TLS"), 0o600); err != nil {
		t.Fatal(err)
	}

	t.Run("tokens", func(t *testing.T) { tokensWork(t, c, sock) })
	t.Run("bad certificates", func(t *testing.T) { badCertificates(t, c, ca) })
	t.Run("revoked", func(t *testing.T) { revokedIsCut(t, c, ca, sock) })
	t.Run("off", func(t *testing.T) {
		if err := c.Kill(3); err != nil {
			t.Fatal(err)
		}
		refused(t, "--tls off is refused", "server", "--cluster-id", c.ClusterID(), "--node-id", "3", "--listen", c.Addrs()[2],
			"--data-dir", filepath.Join(c.Dir(), "node-3", "data"), "--device", c.DevicePath(3, 0), "--seed-nodes", strings.Join(c.Addrs(), ","), "--tls", "off")
		fresh := t.TempDir()
		_, errs, err := cfsSays(t, "server", "--cluster-id", c.ClusterID(), "--node-id", "3", "--listen", c.Addrs()[2], "--log-level", "error",
			"--data-dir", filepath.Join(fresh, "data"), "--device", deviceFile(t), "--seed-nodes", strings.Join(c.Addrs(), ","), "--tls", "off")
		if err == nil || !strings.Contains(errs, "connections are encrypted") {
			t.Errorf("a new node without certificates: %v, %q", err, errs)
		}
		// A wiped one is not trusted either: its number is taken.
		refused(t, "it needs a token", "server", "--cluster-id", c.ClusterID(), "--node-id", "3", "--listen", c.Addrs()[2], "--log-level", "error",
			"--data-dir", filepath.Join(fresh, "wiped"), "--device", deviceFile(t), "--seed-nodes", strings.Join(c.Addrs(), ","))
	})
	if got, err := os.ReadFile(filepath.Join(m.Point, "file")); err != nil || string(got) != "by TLS" {
		t.Errorf("at the end the file is %q, %v", got, err)
	}
}

func deviceFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dev")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(cluster.MinDeviceSizeBytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func tokensWork(t *testing.T, c *cluster.Cluster, sock string) {
	server := c.Addrs()[0]
	token := done(t, "admin", "token", "create", "--role", "admin", "--server", sock)
	dir := filepath.Join(t.TempDir(), "id")
	done(t, "admin", "enrol", "--token", token, "--identity-dir", dir, "--server", server)
	done(t, "admin", "status", "--identity-dir", dir, "--server", server)
	enrolledIsListed(t, dir, sock)
	refused(t, "used already", "admin", "enrol", "--token", token, "--identity-dir", filepath.Join(t.TempDir(), "id"), "--server", server)
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "key.pem"): 0o600, filepath.Join(dir, "cert.pem"): 0o600} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want mode %o", path, fi.Mode(), err, mode)
		}
	}
	late := done(t, "admin", "token", "create", "--role", "client", "--ttl", "1ms", "--identity-dir", dir, "--server", server)
	time.Sleep(5 * time.Millisecond) // it expires by the leader's clock
	refused(t, "expired", "admin", "enrol", "--token", late, "--identity-dir", filepath.Join(t.TempDir(), "id"), "--server", server)

	var listed struct{ Tokens []struct{ ID, Token string } }
	kept := done(t, "admin", "token", "create", "--role", "client", "--identity-dir", dir, "--server", server)
	if err := json.Unmarshal([]byte(done(t, "admin", "token", "list", "--json", "--server", sock)), &listed); err != nil {
		t.Fatal(err)
	}
	parsed, err := pki.ParseToken(kept)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range listed.Tokens {
		found = found || l.ID == parsed.ID
		if l.Token != "" {
			t.Error("a token is listed whole")
		}
	}
	if !found {
		t.Errorf("token %s is not listed: %+v", parsed.ID, listed)
	}
	done(t, "admin", "token", "remove", parsed.ID, "--server", sock)
	refused(t, "unknown", "admin", "enrol", "--token", kept, "--identity-dir", filepath.Join(t.TempDir(), "id"), "--server", server)
	refused(t, "connections are encrypted", "admin", "nodes", "--server", server)
}

// enrolledIsListed wants the key in an administrator's directory to be known by the cluster.
func enrolledIsListed(t *testing.T, dir, sock string) {
	t.Helper()
	store, err := pki.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key and the founders' are listed", func() bool {
		var listed struct {
			Identities []struct {
				Key, Role string
				Revoked   bool
			}
		}
		if err := json.Unmarshal([]byte(done(t, "admin", "identity", "list", "--json", "--server", sock)), &listed); err != nil {
			t.Fatal(err)
		}
		found, servers := false, 0
		for _, l := range listed.Identities {
			if l.Role == "storage" {
				servers++
			}
			found = found || l.Key == store.Identity().Who.Key && l.Role == "admin" && !l.Revoked
		}
		return found && servers == 3
	})
}

// anyServer takes every server for what it says to be.
func anyServer([]*x509.Certificate) (cfs.Principal, error) { return cfs.Principal{}, nil }

func badCertificates(t *testing.T, c *cluster.Cluster, ca cfs.CA) {
	foreign, err := pki.NewAuthority(c.ClusterID(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	who := cfs.Principal{ClusterID: c.ClusterID(), Role: cfs.RoleClient}
	other := who
	other.ClusterID = "other"
	now := time.Now()
	// Whom the client trusts is not what is tested: it takes every server.
	secured := func(s *pki.Store) *wire.TLS {
		tls := client.Secured(s, time.Now)
		tls.Judge = anyServer
		return tls
	}
	statusBy(t, c, "a good certificate", client.Secured(identity(t, &ca, &ca, who, now, 0), time.Now), "")
	statusBy(t, c, "an expired certificate", secured(identity(t, &ca, &ca, who, now.Add(-48*time.Hour), time.Hour)), "expired")
	statusBy(t, c, "a certificate of another authority", secured(identity(t, &foreign, &foreign, who, now, 0)), "not signed by this cluster's authority")
	statusBy(t, c, "a certificate of another cluster", secured(identity(t, &ca, &ca, other, now, 0)), `of cluster "other"`)
	statusBy(t, c, "no certificate", &wire.TLS{Config: pki.Anonymous, Judge: anyServer}, "no certificate was shown")
	statusBy(t, c, "no TLS", nil, "connections are encrypted")
	statusBy(t, c, "a server that is another cluster's", client.Secured(identity(t, &foreign, &foreign, who, now, 0), time.Now), "the server's")
}

func revokedIsCut(t *testing.T, c *cluster.Cluster, ca cfs.CA, sock string) {
	store := identity(t, &ca, &ca, cfs.Principal{ClusterID: c.ClusterID(), Role: cfs.RoleClient}, time.Now(), 0)
	security := client.Secured(store, time.Now)
	conn, err := wire.Dial(t.Context(), c.Addrs()[0], wire.DialConfig{Hello: wire.Identity{Name: "test"}, DialTimeout: patience, TLS: security})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	renewForOther(t, c, conn)
	done(t, "admin", "revoke", store.Identity().Who.Key, "--server", sock)
	select {
	case <-conn.Done():
	case <-time.After(patience):
		t.Fatal("a connection with a revoked certificate is not cut")
	}
	_, err = conn.Call(t.Context(), wire.OpStatus, &wirepb.Empty{}, nil, &wirepb.StatusReply{}, nil)
	if err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the connection that was cut says %v", err)
	}
	eventually(t, "every server refuses the certificate", func() bool {
		for _, addr := range c.Addrs() {
			conn, err := wire.Dial(t.Context(), addr, wire.DialConfig{TLS: security, DialTimeout: patience})
			if err == nil {
				conn.Close()
				return false
			}
		}
		return true
	})
	statusBy(t, c, "a revoked certificate", security, "it was revoked")
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Sign(&ca, pki.Request{Who: store.Identity().Who, PublicKey: key}, time.Now())
	if err == nil {
		err = store.Save(cert, ca.Cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	statusBy(t, c, "a new certificate of a revoked key", security, "it was revoked")
	powerless(t, c, identity(t, &ca, &ca, cfs.Principal{ClusterID: c.ClusterID(), Role: cfs.RoleStorage, Node: 9}, time.Now(), 0))
}

// powerless wants a server's certificate to be good for nothing, as its number is not the cluster's.
func powerless(t *testing.T, c *cluster.Cluster, store *pki.Store) {
	t.Helper()
	node := store.Identity().Who.Node
	key, err := store.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the servers refuse a server that is not theirs", func() bool {
		beats, renewals := 0, 0
		for _, addr := range c.Addrs() {
			conn, err := wire.Dial(t.Context(), addr, wire.DialConfig{Hello: wire.Identity{NodeID: node, Name: "test"}, DialTimeout: patience, TLS: client.Secured(store, time.Now)})
			if err != nil {
				return false // it is restarting
			}
			defer conn.Close()
			says := func(op wire.Op, req, reply proto.Message, kind cfs.Kind, what string) bool {
				_, err := conn.Call(t.Context(), op, req, nil, reply, nil)
				return cfs.KindOf(err) == kind && strings.Contains(err.Error(), what)
			}
			if !says(wire.OpQuery, wire.QueryToPB(&cfs.Query{Kind: cfs.QueryMap}), &wirepb.Answer{}, cfs.Unavailable, "not in this server's map") {
				return false
			}
			if says(wire.OpHeartbeat, &wirepb.Heartbeat{Node: &wirepb.Node{Id: uint32(node)}}, &wirepb.HeartbeatReply{}, cfs.Denied, "join it with a token") {
				beats++
			}
			if says(wire.OpEnrol, &wirepb.Enrol{PublicKey: key}, &wirepb.EnrolReply{}, cfs.Denied, "join it with a token") {
				renewals++
			}
		}
		return beats == 1 && renewals == 1 // the leader's
	})
}

// renewForOther wants a renewal for another key refused by every server, by the leader for what it is.
func renewForOther(t *testing.T, c *cluster.Cluster, conn *wire.Conn) {
	t.Helper()
	other, err := pki.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, err := other.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Call(t.Context(), wire.OpEnrol, &wirepb.Enrol{PublicKey: key}, nil, &wirepb.EnrolReply{}, nil)
	if kind := cfs.KindOf(err); kind != cfs.NotLeader && (kind != cfs.Denied || !strings.Contains(err.Error(), "own key")) {
		t.Errorf("a renewal for another key: %v", err)
	}
}

// Certificates that live for seconds are renewed while a mount and the servers go on with the connections that they have.
func TestTLSRenewal(t *testing.T) {
	c := start(t, func(s *cluster.Spec) { s.TLS, s.ServerArgs = true, []string{"--cert-lifetime", "6s"} })
	m := mount(t, c, "mnt")
	dir := filepath.Join(c.Dir(), "mnt.identity")
	stores := []string{dir}
	for n := range c.Nodes() {
		stores = append(stores, filepath.Join(filepath.Dir(c.DevicePath(n+1, 0)), "data", "identity"))
	}
	serials := map[string]string{}
	for _, d := range stores {
		serials[d] = serialIn(t, d)
	}
	dials := func() float64 {
		counters, err := m.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return counters["claudefs_wire_dial_failures_total"]
	}
	before := dials()
	for round := range 2 {
		eventually(t, "every certificate is renewed", func() bool {
			if err := os.WriteFile(filepath.Join(m.Point, "file"), []byte{byte(round)}, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, d := range stores {
				if serialIn(t, d) == serials[d] {
					return false
				}
			}
			return true
		})
		for _, d := range stores {
			serials[d] = serialIn(t, d)
		}
	}
	if after := dials(); after != before {
		t.Errorf("%v connections could not be made meanwhile", after-before)
	}
}

func serialIn(t *testing.T, dir string) string {
	t.Helper()
	store, err := pki.OpenStore(dir)
	if err != nil || store.Identity() == nil {
		t.Fatalf("%s: no identity: %v", dir, err)
	}
	return store.Identity().Who.Serial
}

// A cluster that was made without certificates says so, and refuses a server that wants them.
func TestTLSOff(t *testing.T) {
	c := start(t, nil)
	eventually(t, "the status says that there are no certificates", func() bool {
		return strings.Contains(admin(t, c, "status"), "OFF")
	})
	if err := c.Kill(3); err != nil {
		t.Fatal(err)
	}
	args := []string{"server", "--cluster-id", c.ClusterID(), "--node-id", "3", "--listen", c.Addrs()[2], "--log-level", "error",
		"--device", c.DevicePath(3, 0), "--seed-nodes", strings.Join(c.Addrs(), ",")}
	refused(t, "--tls off only", append(args, "--data-dir", filepath.Join(c.Dir(), "node-3", "data"))...)
	refused(t, "not encrypted", append(args, "--data-dir", filepath.Join(t.TempDir(), "data"))...)
}
