package core_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// drawing reads random bytes in a tight loop, in three ways. Reads that began after it saw another generation it writes down, together with
// the last thousand before.
const drawing = `
import os, json, time
dev = open('/dev/urandom', 'rb', buffering=0)
def draw(): return [os.getrandom(16).hex(), dev.read(16).hex(), os.urandom(16).hex()]
before, n = [], 0
while True:
    with open('/run/supermachine/generation') as f: generation = f.read()
    r = draw()
    if generation != '0\n':
        after = [r] + [draw() for _ in range(3)]
        with open('/tmp/draws.new', 'w') as f: json.dump({'before': before, 'after': after}, f)
        os.rename('/tmp/draws.new', '/tmp/draws')
        time.sleep(1e6)
    before = before[-1000:] + [r]
    n += 1
    if n == 100: open('/tmp/drawing', 'w').close()
`

// No two VMs of a snapshot may ever draw the same random bytes, from the first read on.
func TestRestoredVMsDrawDifferentRandomBytes(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{
		Ref: imageRef(t, "debian"), Entrypoint: []string{"/usr/bin/python3", "-c", drawing}, Ready: core.ReadyCommand("test", "-e", "/tmp/drawing"),
	})
	restores, parallel := vmtest.Times(40, 200), 4
	type draws struct{ Before, After [][]string }
	results := make([]draws, restores)
	work := make(chan int)
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := range work {
				vm, err := snap.Start(t.Context(), core.StartOptions{})
				if err != nil {
					t.Errorf("restore %d: %v", i, err)
					continue
				}
				out, err := vm.Run(t.Context(), core.Exec{Args: []string{"sh", "-c", "until cat /tmp/draws 2>/dev/null; do sleep 0.02; done"}})
				if err != nil || json.Unmarshal(out.Stdout, &results[i]) != nil {
					t.Errorf("restore %d: %v: %s", i, err, out.Stdout)
				}
				vm.Close()
			}
		})
	}
	for i := range restores {
		work <- i
	}
	close(work)
	wg.Wait()
	require.False(t, t.Failed())
	before, after := map[string]bool{}, map[string]int{}
	for _, r := range results[0].Before {
		for _, b := range r {
			before[b] = true
		}
	}
	require.Greater(t, len(before), 100)
	for i, r := range results {
		require.Equal(t, results[0].Before[:50], r.Before[:50], "all have the same past")
		require.Len(t, r.After, 4)
		for _, draw := range r.After {
			for _, b := range draw {
				require.Len(t, b, 32)
				require.False(t, before[b], "VM %d draws what was drawn before the freeze", i)
				other, again := after[b]
				require.False(t, again, "VMs %d and %d draw the same", other, i)
				after[b] = i
			}
		}
	}
}

// client makes a TLS handshake over its standard streams and says how it went on stderr.
const client = `
import ssl, os, sys
ctx = ssl.create_default_context(cafile='/tmp/ca.pem')
recv, send = ssl.MemoryBIO(), ssl.MemoryBIO()
conn = ctx.wrap_bio(recv, send, server_hostname='guest.test')
while True:
    try:
        conn.do_handshake()
        break
    except ssl.SSLWantReadError:
        os.write(1, send.read())
        recv.write(os.read(0, 65536))
os.write(1, send.read())
print('verified', file=sys.stderr)
`

// A certificate that was issued after the snapshot is valid at once: the guest's wall clock is right before anything runs.
func TestCertificatesNewerThanTheSnapshotAreValid(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "debian"), BootOnly: true})
	first := restore(t, snap) // time passes
	require.NoError(t, first.Close())

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "guest.test"}, DNSNames: []string{"guest.test"},
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	vm := restore(t, snap)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	require.NoError(t, vm.WriteFile(t.Context(), "/tmp/ca.pem", strings.NewReader(ca), 0o644))

	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"python3", "-c", client}, Pipes: true})
	require.NoError(t, err)
	host, guest := net.Pipe()
	go io.Copy(p.Stdin, guest)
	go io.Copy(guest, p.Stdout)
	server := tls.Server(host, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	go server.HandshakeContext(t.Context())
	said, err := io.ReadAll(p.Stderr)
	require.NoError(t, err)
	require.Equal(t, "verified\n", string(said))
	server.Close()
}
